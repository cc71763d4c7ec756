"""What uses of an index cost in a fresh process; without torch and Ray, whose imports would hide it."""

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from rayface.bench.process_tree import peak_bytes
from rayface.data.dataset import open_dataset
from rayface.data.shards.samples import ShardRows
from rayface.data.streaming.sample_order import SampleOrder


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a fresh process took, on one core.

    Attributes:
        cpu_seconds: other work on the machine disturbs it less.
        peak_bytes: resident memory at the peak, imports included.
        added_bytes: at the peak, beyond what the process had before.
    """

    what: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    added_bytes: int


def cost_of(work: Callable[..., None], what: str, *arguments: object) -> Cost:
    """Measure work(*arguments) in a fresh process on one core; RuntimeError if it ends without an answer."""
    context = multiprocessing.get_context("spawn")
    answer, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_cost, args=(work, what, arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        cost: Cost = answer.recv()
    except EOFError:
        raise RuntimeError(f"{what}: the process that was measured ended, perhaps for want of memory") from None
    finally:
        process.kill()
        process.join()
    return cost


def _cost(work: Callable[..., None], what: str, arguments: tuple[object, ...], answer: Connection) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    before = peak_bytes(os.getpid(), reset=True)
    marks = time.perf_counter(), time.process_time()
    work(*arguments)
    seconds, cpu = time.perf_counter() - marks[0], time.process_time() - marks[1]
    peak = peak_bytes(os.getpid())
    answer.send(Cost(what=what, seconds=seconds, cpu_seconds=cpu, peak_bytes=peak, added_bytes=peak - before))


def open_index(path: str) -> None:
    """Open a dataset."""
    open_dataset(path)


def order_steps(order: SampleOrder, steps: list[int]) -> None:
    """Compute the windows of some steps."""
    for step in steps:
        order.window(order.window_of(step)[0])


def open_shards(path: str) -> None:
    """Open a dataset and find the samples of each shard, as the driver of an embedding job does."""
    dataset = open_dataset(path)
    rows = ShardRows(dataset.index.shard, len(dataset.shards))
    pickle.dumps([rows[number] for number in range(len(dataset.shards))])
