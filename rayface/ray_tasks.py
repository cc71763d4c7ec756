"""Independent parts of a job on Ray: tasks or actors, safe to run twice, one line for an error of the user's."""

from __future__ import annotations

import ctypes
import logging
import pickle
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from rayface.progress import phase
from rayface.ray_errors import in_one_line
from rayface.storage import DataError, StorageError

_TASKS_PER_CPU = 2  # submitted at once, so that no CPU waits for the driver
_CAPACITY_SECONDS = 5.0  # between looks at the cluster's CPUs, which may grow
_MOST_BLOCKS = 4096  # Ray Data spends about 10 ms of the driver on each; more parts share one

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextmanager
def quiet_data(debug: bool) -> Iterator[None]:
    """Keep Ray Data's notes of every execution out of the terminal, unless `debug`."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(before if debug else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True, kw_only=True)
class _Answer(Generic[Result]):
    """What a part returned, or its error as the user reads it and, for --debug, where it came from."""

    result: Result | None = None
    error: Exception | None = None
    trace: str = ""

    def value(self) -> Result:
        if self.error is not None:
            raise self.error from RuntimeError(self.trace)
        return self.result  # type: ignore[return-value]  # None only if the work returns it


def map_unordered(
    work: Callable[[Part], Result], parts: Sequence[Part], name: str, *, rows: int | None = None
) -> Iterator[Result]:
    """Call work(part) for every part in a Ray task of one CPU and yield what it returns, in any order.

    Args:
        work: it is sent once to the object store, with what it holds.
        name: of the phase, as `progress.phase` shows it.
        rows: images in all parts, for the rate.

    Raises:
        DataError: the first ValueError of a part; StorageError for one of these, RuntimeError for anything else: its
            cause, one line.
    """
    if not parts:
        return
    # SPREAD: anywhere. A trial of a sweep would else keep the tasks in its own placement group, without a CPU.
    task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_call)
    shared, waiting = ray.put(work), deque(parts)
    running: list[ray.ObjectRef] = []
    capacity = _Capacity()
    try:
        with phase(name, parts=len(parts), rows=rows) as current:
            while waiting or running:
                while waiting and len(running) < capacity.tasks():
                    running.append(task.remote(shared, waiting.popleft()))
                (done,), running = ray.wait(running, num_returns=1)
                value = ray.get(done).value()
                current.advance()
                yield value
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a task failed: {in_one_line(error)}") from error
    finally:
        for each in running:
            ray.cancel(each)


class _Capacity:
    """How many tasks of one CPU to submit at once."""

    def __init__(self) -> None:
        self._looked = -_CAPACITY_SECONDS
        self._tasks = _TASKS_PER_CPU

    def tasks(self) -> int:
        if time.monotonic() - self._looked >= _CAPACITY_SECONDS:
            self._looked = time.monotonic()
            self._tasks = max(1, int(ray.cluster_resources().get("CPU", 1))) * _TASKS_PER_CPU
        return self._tasks


def _call(work: Callable[[Part], Result], part: Part) -> _Answer[Result]:
    return _answer(lambda: work(part))


def map_unordered_by_actors(
    worker: Callable[..., Callable[[Part], Result]],
    arguments: Mapping[str, object],
    parts: Sequence[Part],
    name: str,
    *,
    rows: int | None = None,
    actors: int,
    num_cpus: float,
    num_gpus: float,
) -> Iterator[Result]:
    """As map_unordered, by a pool of actors that are worker(**arguments) and are called with a part."""

    class Caller:
        def __init__(self) -> None:
            self.worker: Callable[[Part], Result] | None = None

        def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
            return {"answer": [pickle.dumps(_answer(lambda: self.work(pickle.loads(batch["part"][0]))))]}

        def work(self, part: Part) -> Result:
            # Not in __init__, where an error would reach the driver as the end of an actor.
            self.worker = self.worker or worker(**arguments)
            return self.worker(part)

    if not parts:
        return
    pool = ActorPoolStrategy(size=actors)
    mapped = _blocks(parts).map_batches(Caller, batch_size=1, compute=pool, num_cpus=num_cpus, num_gpus=num_gpus)
    try:
        with phase(name, parts=len(parts), rows=rows) as current:
            for row in mapped.iter_rows():
                value: Result = pickle.loads(row["answer"]).value()
                current.advance()
                yield value
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a task failed: {in_one_line(error)}") from error


def _blocks(parts: Sequence[Part]) -> ray.data.Dataset:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    with DataContext.current(context):
        items = [{"part": pickle.dumps(part)} for part in parts]
        return ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS))


def _answer(call: Callable[[], Result]) -> _Answer[Result]:
    # An error is an answer: Ray would wrap it in pages of text, and begin an actor anew to try again.
    try:
        return _Answer(result=call())
    except Exception as error:
        return _Answer(error=_for_user(error), trace=traceback.format_exc())
    finally:
        _release_memory()


def _release_memory() -> None:
    """Return freed memory to the system: what allocators keep after one part and the next adds up to several blocks."""
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _for_user(error: Exception) -> Exception:
    line = in_one_line(error)
    if isinstance(error, ValueError):
        return DataError(line)
    return StorageError(line) if isinstance(error, StorageError) else RuntimeError(f"a task failed: {line}")
