"""Samples of a dataset in a given order, with keys, for the formats that it is written to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.manifest import UNFINISHED
from rayface.data.output_folder import exclusive_output
from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import Fault, Sample
from rayface.job_folder import require_empty
from rayface.progress import phase
from rayface.storage import delete, is_local, is_temporary, join, make_folder, normalise

_CHUNK = 1024  # samples read at once
_KEY = "convert.out"


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


@contextmanager
def new_folder(out: str, names: Collection[str]) -> Iterator[str]:
    """Own an output folder inside the context, new or empty; yield its path.

    It is marked UNFINISHED until the context ends without an error, and sources refuse it. On a disk, what an
    interrupted call has left is deleted: the output starts over.

    Args:
        names: names of the files and folders that are written.

    Raises:
        DataError: `out` is not empty or cannot be written.
    """
    root = normalise(out)
    make_folder(root)
    if not is_local(root):
        require_empty(root, key=_KEY)  # without a lock, the other call may be running
    with exclusive_output(root, lambda name: name in names or is_temporary(name), key=_KEY):
        require_empty(root, key=_KEY, beside=[UNFINISHED])
        yield root
        delete(join(root, UNFINISHED))


def identity_of(dataset: Dataset, label: int) -> str:
    """Return the name of an identity; its number with seven digits if it has none."""
    return dataset.identities[label] if dataset.identities else f"{label:07d}"
