"""Write a dataset with pairs as a .bin file of InsightFace."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.manifest import PAIRS
from rayface.data.shards.samples import Fault
from rayface.data.sources.pairs_csv import read_pairs_csv
from rayface.data.targets.samples import Written, read_rows
from rayface.storage import DAY, DataError, atomic_stream, delete_temporary, exists, is_local, join, normalise, split


def write_bin(dataset: Dataset, out: str) -> Written:
    """Write the images of the pairs in the dataset's pairs.csv, in the order of the folds, as a pickle.

    It is what `pickle.dump((images, is_same))` writes in protocol 3, which InsightFace reads. Memory: 1,024 images.

    Raises:
        DataError: there is no pairs.csv, it names an image that is missing or corrupt, or `out` exists.
    """
    path, pairs = normalise(out), join(dataset.roots[0], PAIRS)
    if exists(path):
        raise DataError(f"convert.out: {path}: exists: choose another file, existing data is never overwritten")
    if not exists(pairs):
        raise DataError(f"{pairs}: no such file: a .bin holds pairs of images: write them there, see docs/data.md")
    keys, is_same = read_pairs_csv(pairs)
    rows = dataset.find([keys])
    if (rows < 0).any():
        missing = keys[int(np.argmin(rows))].as_py()
        raise DataError(f"{pairs}: names {missing}, which is not in {dataset.roots[0]}")
    if is_local(path):
        delete_temporary(split(path)[0], of=split(path)[1], min_age=DAY)
    with atomic_stream(path) as stream:
        write_pickle(stream, _images(dataset, rows, pairs), is_same)
    return Written(num_images=len(rows), num_files=1)


def write_pickle(stream: BinaryIO, images: Iterable[bytes], is_same: Iterable[bool]) -> None:
    """Write the pickle of (images, is_same) image by image."""
    stream.write(b"\x80\x03](")  # protocol 3, a list and its items
    for image in images:
        stream.write(b"B" + struct.pack("<I", len(image)) + image)
    stream.write(b"e](" + b"".join(b"\x88" if same else b"\x89" for same in is_same) + b"e\x86.")


def _images(dataset: Dataset, rows: NDArray[np.int64], pairs: str) -> Iterator[bytes]:
    for sample in read_rows(dataset, rows):
        if isinstance(sample, Fault):
            raise DataError(f"{pairs}: names an image that is corrupt: {sample}")
        yield sample.jpeg
