"""Work in parts, as jobs of Ray Data: independent, safe to run twice, one line for an error of the user's."""

from __future__ import annotations

import ctypes
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from rayface.ray_errors import in_one_line
from rayface.storage import DataError, StorageError

_MOST_BLOCKS = 4096  # Ray Data spends about 10 ms of the driver on each; more parts share one

Part = TypeVar("Part")
Progress = Callable[[int, int], None]  # (parts done, parts in all)


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


def map_unordered(
    work: Callable[[Part], dict[str, Any]], parts: Sequence[Part], done: Progress
) -> Iterator[dict[str, Any]]:
    """Call work(part) for every part on the cluster's CPUs and yield what it returns, in any order.

    Args:
        work: what it holds is sent to every task, so large things go by reference; returns a dict.

    Raises:
        DataError: the first ValueError of a part; StorageError for one of these, RuntimeError for anything else: its
            cause, one line.
    """

    def call(batch: dict[str, Any]) -> dict[str, Any]:
        return _answer(lambda: work(pickle.loads(batch["part"][0])))

    if parts:
        yield from _results(_blocks(parts).map_batches(call, batch_size=1, num_cpus=1), len(parts), done)


def map_unordered_by_actors(
    worker: type,
    arguments: dict[str, Any],
    parts: Sequence[Part],
    done: Progress,
    *,
    actors: int,
    num_cpus: float,
    num_gpus: float,
) -> Iterator[dict[str, Any]]:
    """As map_unordered, by actors that are worker(**arguments) and are called with a part."""

    class Caller:
        def __init__(self) -> None:
            self.worker: Any = None

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return _answer(lambda: self.work(pickle.loads(batch["part"][0])))

        def work(self, part: Part) -> dict[str, Any]:
            # Not in __init__, where an error would reach the driver as the end of an actor.
            self.worker = self.worker or worker(**arguments)
            return self.worker(part)

    if parts:
        mapped = _blocks(parts).map_batches(
            Caller, batch_size=1, compute=ActorPoolStrategy(size=actors), num_cpus=num_cpus, num_gpus=num_gpus
        )
        yield from _results(mapped, len(parts), done)


def _blocks(parts: Sequence[Part]) -> ray.data.Dataset:
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    with DataContext.current(context):
        items = [{"part": pickle.dumps(part)} for part in parts]
        return ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS))


def _answer(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    # An error is an answer: Ray would wrap it in pages of text, and begin an actor anew to try again.
    try:
        return {"result": [pickle.dumps(call())]}
    except Exception as error:
        return {"result": [pickle.dumps({"error": _for_user(error), "trace": traceback.format_exc()})]}
    finally:
        _give_back()


def _give_back() -> None:
    """Return freed memory to the system: what allocators keep after one part and the next adds up to several blocks."""
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _results(mapped: ray.data.Dataset, total: int, done: Progress) -> Iterator[dict[str, Any]]:
    try:
        for count, row in enumerate(mapped.iter_rows(), 1):
            result = pickle.loads(row["result"])
            if "error" in result:
                raise result["error"] from RuntimeError(result["trace"])  # which --debug shows
            done(count, total)
            yield result
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a task failed: {in_one_line(error)}") from error


def _for_user(error: Exception) -> Exception:
    line = in_one_line(error)
    if isinstance(error, ValueError):
        return DataError(line)
    return StorageError(line) if isinstance(error, StorageError) else RuntimeError(f"a task failed: {line}")
