"""Which image is in which step: a pure function of (seed, epoch, step), the same for any number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rayface.data.streaming.label_groups import LabelGroups

Ids = NDArray[np.int64]
StreamKind = Literal["images", "pairs", "pairs_and_images"]
"""What a step consists of: images; pairs of images of one identity; half such pairs, half pairs of any two images."""


def check_batch_size(batch_size: int, epoch_images: int, images_per_row: int) -> None:
    """Raise ValueError, one line, for a batch of more images than an epoch has."""
    if epoch_images < batch_size * images_per_row:
        each = f" rows of {images_per_row}" if images_per_row > 1 else ""
        raise ValueError(
            f"train.batch_size: {batch_size}:{each} must not exceed the {epoch_images} samples of data.train: "
            "use a smaller batch or more data"
        )


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

    Attributes:
        images_per_row: images of one row of a batch.
        needs_groups: `window` draws from the images of each identity.
    """

    images_per_row: ClassVar[int] = 1
    needs_groups: ClassVar[bool] = False

    num_samples: int
    batch_size: int
    seed: int = 0
    chunk_images: int = 8
    window_images: int = 4096

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, self.epoch_images, self.images_per_row)

    @property
    def epoch_images(self) -> int:
        """Number of images from which the batches of an epoch are cut."""
        return self.num_samples

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.images_per_row

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which as many images are seen as an epoch has."""
        return self.epoch_images // self.images_per_step

    def total_steps(self, epochs: float) -> int:
        """Return the number of steps of a run; at least one."""
        return max(1, round(epochs * self.steps_per_epoch))

    @property
    def window_steps(self) -> int:
        """Steps of a full window; the last window of an epoch may have fewer."""
        return max(1, min(self.steps_per_epoch, round(self.window_images / self.images_per_step)))

    @property
    def windows_per_epoch(self) -> int:
        return -(-self.steps_per_epoch // self.window_steps)

    def window_of(self, step: int) -> tuple[int, int]:
        """Return the window that holds a step, counted over the whole run, and the step's place in it."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        window, place = divmod(step_in_epoch, self.window_steps)
        return epoch * self.windows_per_epoch + window, place

    def steps_of(self, number: int) -> range:
        """Return the steps of a window, counted over the whole run."""
        epoch, window = divmod(number, self.windows_per_epoch)
        first = window * self.window_steps
        steps = min(self.window_steps, self.steps_per_epoch - first)
        start = epoch * self.steps_per_epoch + first
        return range(start, start + steps)

    def window(self, number: int, groups: LabelGroups | None = None) -> Ids:
        """Return the positions in the index of a window's images, (steps, B * images_per_row).

        Args:
            groups: the images of each identity, if the order needs them.
        """
        epoch, window = divmod(number, self.windows_per_epoch)
        first = window * self.window_steps
        steps = len(self.steps_of(number))
        positions = np.arange(first * self.batch_size, (first + steps) * self.batch_size, dtype=np.int64)
        ids = self._at(epoch, positions)
        np.random.default_rng([self.seed, epoch, window, 1]).shuffle(ids)
        return ids.reshape(steps, self.batch_size)

    def batch(self, step: int, groups: LabelGroups | None = None) -> Ids:
        """Return the positions in the index of a step's images, (B * images_per_row,)."""
        window, place = self.window_of(step)
        return self.window(window, groups)[place]

    def rank_images(self, rank: int, world_size: int) -> slice:
        """Return the images of a step that a rank trains on: those of its rows."""
        rows = rank_rows(self.batch_size, rank, world_size)
        return slice(rows.start * self.images_per_row, rows.stop * self.images_per_row)

    def _at(self, epoch: int, positions: Ids) -> Ids:
        """Return the images at positions of an epoch's order, without computing the whole order."""
        return chunk_order_at(positions, self.epoch_images, self.chunk_images, self.seed, epoch, 0)


def chunk_order_at(positions: Ids, num_samples: int, chunk_images: int, seed: int, epoch: int, stream: int) -> Ids:
    """Return the images at positions of a permutation of chunks; `stream` and `epoch` tell permutations apart."""
    order, short_place = _chunk_order(num_samples, chunk_images, seed, epoch, stream)
    missing = -num_samples % chunk_images
    # Only the last chunk of the data is short; positions after it move up by the missing images.
    end_of_short = (short_place + 1) * chunk_images - missing
    places = positions + missing * (positions >= end_of_short)
    chunk, inside = np.divmod(places, chunk_images)
    return order[chunk].astype(np.int64) * chunk_images + inside


def rank_rows(batch_size: int, rank: int, world_size: int) -> slice:
    """Return the part of the global batch that a rank trains on."""
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


@lru_cache(maxsize=8)  # two epochs of an order and of some directories, 4 bytes a chunk each
def _chunk_order(num_samples: int, chunk: int, seed: int, epoch: int, stream: int) -> tuple[NDArray[np.int32], int]:
    num_chunks = -(-num_samples // chunk)
    order = np.arange(num_chunks, dtype=np.int32)  # the same order as permutation(num_chunks) in a third of the memory
    np.random.default_rng([seed, epoch, stream]).shuffle(order)
    return order, int(np.argmax(order))
