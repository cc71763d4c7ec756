"""A rank's part of the global batch in pieces that fit, and what each is worth."""

from dataclasses import dataclass

from rayface.config import TrainConfig
from rayface.data.streaming.sample_order import rank_rows


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


def check_pieces(train: TrainConfig) -> None:
    """Refuse a batch that leaves a worker without two images at once, which batch normalisation needs.

    A single image is only let through as the whole batch.

    Raises:
        ValueError: one line.
    """
    if train.batch_size < train.max_workers:
        raise ValueError(
            f"train.num_workers: {train.max_workers}: must not exceed train.batch_size={train.batch_size}: use fewer"
        )
    for workers in range(train.min_workers, train.max_workers + 1):
        pieces = micro_batches(train.batch_size, 0, workers, train.max_batch_per_worker)
        if train.batch_size > 1 and min(min(piece.counts) for piece in pieces) < 2:
            raise ValueError(
                f"train.batch_size: {train.batch_size}: must leave each of {workers} workers two images at once: raise "
                "it or train.max_batch_per_worker, or use fewer workers"
            )
