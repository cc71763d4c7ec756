"""Samples of a dataset in a given order, with keys, for the formats that it is written to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import Fault, Sample
from rayface.progress import phase

_CHUNK = 1024  # samples read at once


@dataclass(frozen=True, kw_only=True)
class Written:
    """Number of images and files that were written, and the images that could not be read."""

    num_images: int
    num_files: int
    faults: tuple[Fault, ...] = ()


def read_rows(dataset: Dataset, rows: NDArray[np.int64]) -> Iterator[Sample | Fault]:
    """Yield the samples at rows of the index, in the order of `rows`. Memory: 1,024 samples."""
    with (
        SampleReader(dataset.shard_paths()) as reader,
        phase("write images", rows=len(rows), parts=len(rows)) as current,
    ):
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            order = np.argsort(chunk, kind="stable")  # neighbours in a shard are read together
            found: dict[int, Sample | Fault] = {}
            for position, sample in reader.read(dataset.index.select(chunk[order])):
                found[int(order[position])] = sample
            for position in range(len(chunk)):
                yield found[position]
                current.advance()


def identity_of(dataset: Dataset, label: int) -> str:
    """Return the name of an identity; its number with seven digits if it has none."""
    return dataset.identities[label] if dataset.identities else f"{label:07d}"
