"""Worker side of the stream: turn the blocks of a node into the batches of a rank."""

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import ray
import torch

from rayface.data.shards.samples import Fault
from rayface.data.streaming.dealer import Dealt, Stream
from rayface.data.streaming.windows import rank_windows


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A rank's part of the global batch of a step.

    Attributes:
        step: step of the run.
        rows: the rank's part of the global batch, in images; of pairs, the two images follow each other.
        images: uint8 (n, size, size, 3) RGB.
        labels: int64 (n,), global.
        faults: corrupt images of the window, the same on every rank; given with its first batch, or with the first one
            after the steps that were read early.
    """

    step: int
    rows: slice
    images: torch.Tensor
    labels: torch.Tensor
    faults: tuple[Fault, ...]


def train_batches(dealt: Dealt, rank: int, *, node: str | None = None) -> Iterator[Batch]:
    """Request this rank's first blocks; return its batches of the stream's steps.

    Args:
        node: Ray's id of the rank's node, whose ranks share its blocks; None: this process's node.

    Raises:
        DataError, StorageError: an error of the readers.
    """
    blocks = _blocks(dealt, rank, node or ray.get_runtime_context().get_node_id())
    return _batches(dealt.stream, rank, blocks)


def _batches(stream: Stream, rank: int, blocks: Iterator[pa.Table]) -> Iterator[Batch]:
    order = stream.order
    step, stop = stream.steps
    rows = order.rank_images(rank, stream.world_size)
    window = order.window_of(step)[0]
    for block in blocks:
        for part in rank_windows(block, order, rank, stream.world_size, stream.image_size):
            if part.window != window:
                raise RuntimeError(f"rank {rank} received window {part.window} instead of {window}: the order was lost")
            begin = order.window_of(step)[1] - part.place
            for i in range(begin, min(len(part.labels), begin + stop - step)):
                yield Batch(
                    step=step + i - begin,
                    rows=rows,
                    images=torch.from_numpy(part.images[i].copy()),
                    labels=torch.from_numpy(part.labels[i].copy()),
                    faults=part.faults if i == begin else (),
                )
            step += len(part.labels) - begin
            window = order.window_of(step)[0]


def _blocks(dealt: Dealt, rank: int, node: str) -> Iterator[pa.Table]:
    """Request the first turns; return the block of each turn. Turns ahead are fetched into this node's store."""
    dealer, ahead = dealt.dealer, dealt.stream.turns_ahead
    closed = threading.Event()

    def take(turn: int) -> pa.Table | None:
        found = ray.get(dealer.take.remote(rank, node, turn))
        if found is None or closed.is_set():  # after its session, ray.get would start a Ray of its own
            return None
        return ray.get(found[0])

    pool = ThreadPoolExecutor(1 + ahead, thread_name_prefix="blocks")
    turns = deque(pool.submit(take, turn) for turn in range(ahead))

    def in_turn() -> Iterator[pa.Table]:
        try:
            for turn in itertools.count(ahead):
                turns.append(pool.submit(take, turn))
                block = turns.popleft().result()
                if block is None:
                    return
                yield block
        finally:
            closed.set()
            if ray.is_initialized():  # a stream that was not read to its end may outlive its session
                dealer.done.remote(rank)
            pool.shutdown(wait=False, cancel_futures=True)

    return in_turn()
