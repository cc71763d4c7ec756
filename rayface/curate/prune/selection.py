"""Select images on the cluster, partition by partition, at a threshold or at the threshold of a given share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from rayface.arrays import Bools, Ints
from rayface.curate.core_set_file import selected_rows
from rayface.curate.partitions import Partition, Partitions, read_partition
from rayface.curate.prune.dataset_stats import DatasetStats
from rayface.curate.prune.keep_ratio import sample_identities, search_threshold
from rayface.curate.prune.selection_method import Images, SelectionMethod, ThresholdMethod
from rayface.curate.work_files import WorkPath, local_paths
from rayface.ray_tasks import map_unordered
from rayface.storage.parquet import read_table

_SAMPLE_IMAGES = 50_000
_SAMPLE_PARTITIONS = 8
Method = SelectionMethod[Any]
"""The type of the prepared value is private to the method."""


@dataclass(frozen=True, kw_only=True)
class _Decided:
    kept: int


class Selector:
    """Apply selection methods to all partitions; decisions are stored in files and reused.

    Args:
        partitions: all images.
        folder: folder for the decisions, a parquet file per method and partition, and for files of methods.
        seed: seed of the sample on which thresholds are searched.
    """

    def __init__(self, partitions: Partitions, folder: WorkPath, *, seed: int = 0) -> None:
        self.stats = DatasetStats(partitions=partitions, folder=folder)
        self._seed = seed
        self._numbered = list(enumerate(partitions.partitions))

    def fit(self, method: Method, keep: float | None) -> Method:
        """Return the method that keeps a share of all images; a threshold is searched to 0.5 points, or half an image.

        Bisects on a sample of the identities and verifies on all.

        Raises:
            UnreachableKeepError: no threshold keeps this share.
        """
        if keep is None or not isinstance(method, ThresholdMethod):
            return method
        prepared, sample = method.prepare(self.stats), self._sample
        num_sampled = sum(len(images.labels) for images in sample)

        def of_sample(position: float) -> float:
            kept = [np.count_nonzero(method.at(position).select(images, prepared).kept) for images in sample]
            return sum(kept) / num_sampled

        def of_all(position: float) -> float:
            return self.decide(method.at(position)) / self.stats.partitions.num_rows

        position, _ = search_threshold(
            keep,
            of_sample if sample else of_all,
            of_all,
            num_images=self.stats.partitions.num_rows,
            threshold_at=lambda position: method.at(position).threshold,
        )
        return method.at(position)

    def decide(self, method: Method) -> int:
        """Apply a method to all partitions; return how many images are kept."""
        folder = self.folder_of(method)
        prepared = method.prepare(self.stats)

        def decide(numbered: tuple[int, Partition]) -> _Decided:
            torch.set_num_threads(1)
            path = _path(folder, numbered[0])
            if not path.exists():
                images = read_images(*numbered)
                table = selected_rows(images.keys, images.labels, method.select(images, prepared), method.reason)
                with path.writing() as stream:
                    pq.write_table(table, stream)
            return _Decided(kept=int(np.count_nonzero(read_kept(folder, numbered[0]))))

        results = map_unordered(
            decide, self._numbered, f"select by {method.title}", rows=self.stats.partitions.num_rows
        )
        return sum(result.kept for result in results)

    def decisions(self, method: Method) -> Iterator[pa.Table]:
        """Yield the rows of the core set that `decide` has written, partition by partition."""
        folder = self.folder_of(method)
        for path in local_paths([_path(folder, part) for part, _ in self._numbered]):
            yield read_table(path)

    def folder_of(self, method: Method) -> WorkPath:
        """Return the folder of the decisions of a method."""
        return self.stats.folder / method.fingerprint()

    @cached_property
    def _sample(self) -> list[Images]:
        """Return about 50,000 images: whole identities of a few random partitions.

        Identities with more than a tenth of that are excluded, because one of them would dominate the sample; empty if
        there are no others.
        """
        order = np.random.default_rng(self._seed).permutation(len(self._numbered))
        budget, largest = _SAMPLE_IMAGES // min(len(order), _SAMPLE_PARTITIONS), _SAMPLE_IMAGES // 10
        seed = self._seed

        def sample(numbered: tuple[int, Partition]) -> Images:
            images = read_images(*numbered)
            random, sizes = np.random.default_rng([seed, images.part]), np.diff(images.offsets)
            return _of_identities(images, sample_identities(sizes, budget, largest, random))

        for first in range(0, len(order), _SAMPLE_PARTITIONS):
            few = [self._numbered[part] for part in np.sort(order[first : first + _SAMPLE_PARTITIONS])]
            parts = sorted(map_unordered(sample, few, "sample identities"), key=lambda images: images.part)
            if found := [images for images in parts if len(images.labels)]:
                return found
        return []


def read_images(part: int, partition: Partition) -> Images:
    """Read a partition.

    Raises:
        DataError: a bad embedding; one line.
    """
    rows, offsets = read_partition(partition)
    return Images(
        keys=rows.keys,
        labels=rows.labels,
        embeddings=rows.embeddings,
        offsets=offsets,
        part=part,
        rows=np.arange(len(rows.labels)),
    )


def _of_identities(images: Images, identities: Ints) -> Images:
    """Return the images of some identities, by index."""
    bounds = images.offsets
    rows = np.concatenate([np.arange(bounds[k], bounds[k + 1]) for k in identities] or [np.zeros(0, np.int64)])
    return Images(
        keys=images.keys.take(pa.array(rows)),
        labels=images.labels[rows],
        embeddings=images.embeddings[rows],
        offsets=np.r_[0, np.cumsum(np.diff(bounds)[identities])],
        part=images.part,
        rows=rows,
    )


def read_kept(folder: WorkPath, part: int) -> Bools:
    """Return which images (n,) of a partition were kept; `folder` is that of the method's decisions."""
    return read_table(_path(folder, part).local(), columns=["kept"])["kept"].to_numpy()


def _path(folder: WorkPath, part: int) -> WorkPath:
    return folder / f"part-{part:06d}.parquet"
