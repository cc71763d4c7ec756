"""Map a function over independent, idempotent parts of a job with Ray tasks or actors; user errors are one line."""

from __future__ import annotations

import ctypes
import logging
import pickle
import threading
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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayface.pools import background_thread
from rayface.progress import Phase, phase
from rayface.ray_errors import in_one_line
from rayface.storage import DataError, StorageError

_TASKS_PER_CPU = 2  # tasks in flight per CPU, so that no CPU waits for the driver
_CAPACITY_SECONDS = 5.0  # interval between checks of the cluster's CPUs, which may grow
_END_SECONDS = 30.0  # in which the parts in flight may end when another one has failed
_COUNT_SECONDS = 1.0  # interval of messages about finished rows
_ALL_NODES_SECONDS = 60.0  # after which a node that does not answer is left out
_MOST_BLOCKS = 4096  # Ray Data takes about 10 ms of the driver's time per block; more parts share a block

Part = TypeVar("Part")
Result = TypeVar("Result")


def on_all_nodes(work: Callable[[], None]) -> None:
    """Call a function here, and on every node of the running Ray, if one runs; a node that fails is left out."""
    work()
    if not ray.is_initialized():
        return
    with suppress(ray.exceptions.RayError):
        task = ray.remote(num_cpus=0, max_retries=0)(work)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        started = [task.options(scheduling_strategy=place).remote() for place in places]
        ray.wait(started, num_returns=len(started), timeout=_ALL_NODES_SECONDS)


@contextmanager
def quiet_data(debug: bool) -> Iterator[None]:
    """Silence Ray Data's log of every execution, unless `debug`."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(before if debug else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True, kw_only=True)
class _Answer(Generic[Result]):
    """Result of a part, or its error for the user with the traceback for debugging."""

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
    """Call work(part) for every part in a Ray task with one CPU; yield the results in order of completion.

    Args:
        work: function; put into the object store once, with the objects it holds.
        name: name of the phase, see `progress.phase`.
        rows: number of images in all parts, for the rate.

    Raises:
        DataError, StorageError, RuntimeError: the first error of a part (ValueError becomes DataError, unknown errors
            RuntimeError), with its root cause in one line. Parts in flight have ended then, if they could in 30 s.
    """
    if not parts:
        return
    # SPREAD: on any node. By default, tasks of a sweep's trial would stay in its placement group, which has no CPU.
    task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_call)
    shared, waiting = ray.put(work), deque(parts)
    # Never cancelled: where ray.cancel meets the answer of a task, Ray's core ends this process (Ray 2.60).
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
    except Exception as error:
        if running:  # what they write now would be left by a job that deletes its files
            with suppress(ray.exceptions.RayError):
                ray.wait(running, num_returns=len(running), timeout=_END_SECONDS)
        if isinstance(error, ray.exceptions.RayError):
            raise RuntimeError(f"a task failed: {in_one_line(error)}") from error
        raise


class _Capacity:
    """Number of one-CPU tasks to keep in flight."""

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
    most_actors: int | None = None,
    num_cpus: float,
    num_gpus: float,
    count_rows: bool = False,
) -> Iterator[Result]:
    """Like map_unordered, with a pool of actors: each holds worker(**arguments) and calls it with parts.

    Args:
        actors, most_actors: size of the pool at first, and up to which it grows when nodes join; None: it does not.
        count_rows: show progress in rows, for parts that take minutes; the workers get a further argument `count` and
            call it with the number of rows that they have finished since the last call.
    """

    class Caller:
        def __init__(self) -> None:
            self.worker: Callable[[Part], Result] | None = None

        def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
            return {"answer": [pickle.dumps(_answer(lambda: self.work(pickle.loads(batch["part"][0]))))]}

        def work(self, part: Part) -> Result:
            # Not in __init__, where an error would reach the driver as the death of an actor.
            self.worker = self.worker or worker(**arguments)
            return self.worker(part)

    if not parts:
        return
    counter = ray.remote(num_cpus=0)(_RowCounter).remote() if count_rows else None
    arguments = {**arguments, "count": _RowCount(counter)} if counter is not None else arguments
    pool = ActorPoolStrategy(min_size=actors, max_size=most_actors or actors)
    mapped = _blocks(parts).map_batches(Caller, batch_size=1, compute=pool, num_cpus=num_cpus, num_gpus=num_gpus)
    try:
        with phase(name, parts=len(parts), rows=rows) as current, _shown(counter, current):
            for row in mapped.iter_rows():
                value: Result = pickle.loads(row["answer"]).value()
                if counter is None:
                    current.advance()
                yield value
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a task failed: {in_one_line(error)}") from error


class _RowCounter:
    """Actor: number of rows that all workers of a job have finished."""

    def __init__(self) -> None:
        self._rows = 0

    def add(self, rows: int) -> None:
        self._rows += rows

    def rows(self) -> int:
        return self._rows


class _RowCount:
    """A worker's side of a _RowCounter; sends at most one message a second."""

    def __init__(self, counter: Any) -> None:
        self._counter, self._rows, self._sent = counter, 0, 0.0

    def __call__(self, rows: int) -> None:
        self._rows += rows
        if time.monotonic() - self._sent >= _COUNT_SECONDS:
            self._counter.add.remote(self._rows)
            self._rows, self._sent = 0, time.monotonic()


@contextmanager
def _shown(counter: Any, current: Phase) -> Iterator[None]:
    """Show the rows of a counter as the progress of a phase inside the context, then end the counter."""
    if counter is None:
        yield
        return

    def follow(ended: threading.Event) -> None:
        shown = 0
        with suppress(ray.exceptions.RayError):  # the counter's node is gone: the job continues without it
            while not ended.wait(_COUNT_SECONDS):
                rows = ray.get(counter.rows.remote())
                current.advance_rows(rows - shown)
                shown = rows

    try:
        with background_thread(follow, "rows", wait=5):
            yield
    finally:
        with suppress(ray.exceptions.RayError):
            ray.kill(counter)


def _blocks(parts: Sequence[Part]) -> ray.data.Dataset:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    with DataContext.current(context):
        items = [{"part": pickle.dumps(part)} for part in parts]
        return ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS))


def _answer(call: Callable[[], Result]) -> _Answer[Result]:
    # Return errors as answers: Ray would wrap them in long tracebacks and restart the actor to retry.
    try:
        return _Answer(result=call())
    except Exception as error:
        return _Answer(error=_for_user(error), trace=traceback.format_exc())
    finally:
        _release_memory()


def _release_memory() -> None:
    """Return freed memory to the system; allocators would otherwise accumulate several blocks over the parts."""
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _for_user(error: Exception) -> Exception:
    line = in_one_line(error)
    if isinstance(error, ValueError):
        return DataError(line)
    return StorageError(line) if isinstance(error, StorageError) else RuntimeError(f"a task failed: {line}")
