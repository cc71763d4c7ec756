"""Statistics of all images for selection methods."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.curate.cosines import unit_blocks
from rayface.curate.partitions import Partition, Partitions, read_partition
from rayface.curate.work_files import WorkPath
from rayface.ray_tasks import map_unordered


@dataclass(frozen=True, kw_only=True)
class _Sum:
    part: int
    embeddings: NDArray[np.float64]  # (D,)


@dataclass(frozen=True, kw_only=True)
class DatasetStats:
    """Counts of the identities, and statistics that are computed on the cluster on first access.

    Attributes:
        partitions: all images.
        folder: for files that a method writes once: `with (folder / name).writing() as stream`, and reads by
            `(folder / name).local()`.
    """

    partitions: Partitions
    folder: WorkPath

    @property
    def labels(self) -> Ints:
        """(I,) labels of the identities, rising."""
        return self.partitions.labels

    @property
    def sizes(self) -> Ints:
        """(I,) images of each identity."""
        return self.partitions.sizes

    @cached_property
    def mean_direction(self) -> NDArray[np.float64]:
        """(D,) mean of the unit embeddings of all images."""

        def add(numbered: tuple[int, Partition]) -> _Sum:
            part, partition = numbered
            embeddings = read_partition(partition)[0].embeddings
            total: NDArray[np.float64] = sum(units.sum(axis=0) for units in unit_blocks(embeddings))
            return _Sum(part=part, embeddings=total)

        parts = list(enumerate(self.partitions.partitions))
        sums = sorted(
            map_unordered(add, parts, "average embeddings", rows=self.partitions.num_rows), key=lambda own: own.part
        )
        total: NDArray[np.float64] = np.sum([own.embeddings for own in sums], axis=0)
        return total / self.partitions.num_rows
