"""Images of a dataset by their rows in its index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageRows:
    """Images of a dataset.

    Attributes:
        rows: (n,) rows of its index; in rising order, reads are sequential.
    """

    dataset: Dataset
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_whole(self) -> bool:
        """Whether these are all images of the dataset, in its order."""
        return len(self.rows) == self.dataset.num_images and bool((np.diff(self.rows) == 1).all())

    def read(self, first: int, last: int, image_size: int) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Read and decode images `first` to `last` - 1.

        Returns:
            uint8 RGB (last - first, size, size, 3), and what is wrong with the images that cannot be read, by place.
        """
        order = np.argsort(self.rows[first:last], kind="stable")  # neighbours in a shard are read together
        places = self.rows[first:last][order]
        samples = read_samples(self.dataset.shard_paths(), self.dataset.index.select(places))
        faults = {i: str(sample) for i, sample in enumerate(samples) if isinstance(sample, Fault)}
        images, bad = decode_images([b"" if isinstance(s, Fault) else s.jpeg for s in samples], image_size)
        reasons = {int(order[i]): text for i, text in {**bad, **faults}.items()}
        return images[np.argsort(order)], reasons
