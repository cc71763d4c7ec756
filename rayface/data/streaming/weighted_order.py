"""Order of the images of several directories that are drawn by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayface.data.streaming.sample_order import Ids, SampleOrder, chunk_order_at


@dataclass(frozen=True, kw_only=True)
class WeightedOrder(SampleOrder):
    """Order in which an epoch holds `draws[d]` images of directory d instead of all of them.

    Each directory is a stream of passes over its images, each pass a permutation of its chunks; an epoch takes the next
    `draws[d]` images of that stream. So every image of a directory is seen equally often, but for the pass that an
    epoch's end cuts. The images of an epoch are then shuffled as in SampleOrder.

    Args:
        sizes: number of images of each directory, in the order of the index; their sum is N.
        draws: number of images of each directory in an epoch.
    """

    sizes: tuple[int, ...]
    draws: tuple[int, ...]

    @property
    def epoch_images(self) -> int:
        return sum(self.draws)

    def _at(self, epoch: int, positions: Ids) -> Ids:
        drawn = super()._at(epoch, positions)
        ends, starts = np.cumsum(self.draws), np.cumsum([0, *self.sizes])
        directory = np.searchsorted(ends, drawn, "right")
        ids = np.empty_like(drawn)
        for number in np.unique(directory).tolist():
            rows = np.flatnonzero(directory == number)
            draws, size = self.draws[number], self.sizes[number]
            at = epoch * draws + drawn[rows] - (ends[number] - draws)
            passes, places = np.divmod(at, size)
            for one in np.unique(passes).tolist():
                here = passes == one
                order = chunk_order_at(places[here], size, self.chunk_images, self.seed, one, 1 + number)
                ids[rows[here]] = starts[number] + order
        return ids


def draws_of(sizes: Sequence[int], weights: Sequence[float], chunk_images: int) -> tuple[int, ...]:
    """Return how many images of each directory an epoch holds: its weight times its size, in whole chunks.

    Whole chunks, because an epoch that begins inside one would read its images by two requests.
    """
    return tuple(
        size if weight == 1 else max(1, round(weight * size / chunk_images)) * chunk_images
        for size, weight in zip(sizes, weights, strict=True)
    )
