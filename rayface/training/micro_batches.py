"""A rank's part of the global batch in pieces that fit, and what each is worth."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch.optim import Optimizer

from rayface.data.windows import rank_rows


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What the ranks work on at once.

    Attributes:
        number: of the piece, from 0.
        rows: of this rank's part of the global batch.
        counts: rows of every rank.
        share: of the global batch that all ranks have in hand.
    """

    number: int
    rows: slice
    counts: list[int]
    share: float


def micro_batches(batch_size: int, rank: int, world_size: int, limit: int | None) -> list[MicroBatch]:
    """Cut a global batch so that no rank has more than `limit` rows at once; the same number of cuts on every rank."""
    parts = [rank_rows(batch_size, other, world_size) for other in range(world_size)]
    sizes = [part.stop - part.start for part in parts]
    pieces = -(-max(sizes) // limit) if limit else 1
    found = []
    for piece in range(pieces):
        edges = [(piece * size // pieces, (piece + 1) * size // pieces) for size in sizes]
        counts = [last - first for first, last in edges]
        share = sum(counts) / batch_size
        found.append(MicroBatch(number=piece, rows=slice(*edges[rank]), counts=counts, share=share))
    return found


@contextlib.contextmanager
def scaled_rate(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Multiply the learning rates while inside; schedules do not see it."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    try:
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = lr
