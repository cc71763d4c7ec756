"""Which image is in which step: a pure function of (seed, epoch, step), the same for any number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rayface.data.dataset import Dataset

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """Order of the images of a training run.

    An epoch is a permutation of *chunks* (neighbours in the shards, read at once), cut into *windows* of whole steps;
    the images of a window are permuted again. The position is therefore one number, the step, and a resume needs no
    other state. The images of an epoch that do not fill a batch are left out; they differ from epoch to epoch.

    Args:
        num_samples: number of images of the dataset, N.
        batch_size: global batch B.
        seed: random seed; the same seed gives the same order.
        chunk_images: images per chunk; 1 is a full shuffle, more saves requests to object stores.
        window_images: images per window, rounded to whole steps.

    Raises:
        ValueError: the dataset is smaller than one batch.
    """

    num_samples: int
    batch_size: int
    seed: int = 0
    chunk_images: int = 8
    window_images: int = 4096

    def __post_init__(self) -> None:
        if self.num_samples < self.batch_size:
            raise ValueError(
                f"train.batch_size: {self.batch_size}: must not exceed the {self.num_samples} samples of "
                "data.train: use a smaller batch or more data"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_samples // self.batch_size

    @property
    def window_steps(self) -> int:
        """Steps of a full window; the last window of an epoch may have fewer."""
        return max(1, min(self.steps_per_epoch, round(self.window_images / self.batch_size)))

    @property
    def windows_per_epoch(self) -> int:
        return -(-self.steps_per_epoch // self.window_steps)

    def window_of(self, step: int) -> tuple[int, int]:
        """Return the window that holds a step, counted over the whole run, and the step's place in it."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        window, place = divmod(step_in_epoch, self.window_steps)
        return epoch * self.windows_per_epoch + window, place

    def window(self, number: int) -> Ids:
        """Return the positions in the index of a window's images, (steps, B)."""
        epoch, window = divmod(number, self.windows_per_epoch)
        first = window * self.window_steps
        steps = min(self.window_steps, self.steps_per_epoch - first)
        positions = np.arange(first * self.batch_size, (first + steps) * self.batch_size, dtype=np.int64)
        ids = self._at(epoch, positions)
        np.random.default_rng([self.seed, epoch, window, 1]).shuffle(ids)
        return ids.reshape(steps, self.batch_size)

    def batch(self, step: int) -> Ids:
        """Return the positions in the index of a step's images, (B,)."""
        window, place = self.window_of(step)
        return self.window(window)[place]

    def _at(self, epoch: int, positions: Ids) -> Ids:
        """Return the images at positions of an epoch's chunk order, without computing the whole order."""
        order, short_place = _chunk_order(self.num_samples, self.chunk_images, self.seed, epoch)
        missing = -self.num_samples % self.chunk_images
        # Only the last chunk of the data is short; positions after it move up by the missing images.
        end_of_short = (short_place + 1) * self.chunk_images - missing
        places = positions + missing * (positions >= end_of_short)
        chunk, inside = np.divmod(places, self.chunk_images)
        return order[chunk].astype(np.int64) * self.chunk_images + inside


def rank_rows(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the part of the global batch that a rank trains on."""
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def order_samples(
    dataset: Dataset, *, batch_size: int, seed: int, chunk_images: int, window_images: int
) -> SampleOrder:
    """Return the order of a dataset's images, equally random for every layout.

    In a dataset with layout "by_identity", neighbours show one person: with chunks of 8, a batch of 4,096 images at 20
    images an identity would hold 690 identities instead of 4,090. Such a dataset gets chunks of one image, at the price
    of more requests per window and 4 bytes of memory an image in every reader.
    """
    return SampleOrder(
        num_samples=len(dataset.index),
        batch_size=batch_size,
        seed=seed,
        chunk_images=1 if dataset.about.layout == "by_identity" else chunk_images,
        window_images=window_images,
    )


@lru_cache(maxsize=2)
def _chunk_order(num_samples: int, chunk: int, seed: int, epoch: int) -> tuple[NDArray[np.int32], int]:
    num_chunks = -(-num_samples // chunk)
    order = np.arange(num_chunks, dtype=np.int32)  # the same order as permutation(num_chunks) in a third of the memory
    np.random.default_rng([seed, epoch, 0]).shuffle(order)
    return order, int(np.argmax(order))
