"""Source: InsightFace's .bin test sets (lfw.bin, cfp_fp.bin, agedb_30.bin, ...), pairs of images in a pickle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.manifest import PAIRS
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.bin_file import BinFile, open_bin
from rayface.data.sources.first_image import size_of_first
from rayface.data.sources.pairs_csv import write_pairs_csv
from rayface.data.sources.pickle_values import PickleError
from rayface.storage import split


class BinSource(DatasetSource):
    """One .bin file. Equal images become one; images that genuine pairs connect are one identity.

    The pairs become `pairs.csv` beside the dataset, in ten folds in the order of the file.
    """

    kind = "bin"
    expects = "a .bin file of InsightFace"
    beside = PAIRS

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        super().__init__(src, settings)
        self._file: BinFile | None = None
        self._first: NDArray[np.int64] = np.zeros(0, np.int64)  # of each image, the first one that is equal

    def prepare(self, near: str) -> None:
        self._file = open_bin(self.root)
        self._first = self._file.first_equal()

    def parts(self) -> Sequence[str]:
        return ["pairs"]

    def input_files(self) -> Sequence[str]:
        return [self.root]

    def list_images(self, part: int) -> PartListing:
        file = self._opened()
        a, b = self._first[0::2], self._first[1::2]
        persons = _persons(a[file.is_same], b[file.is_same], len(self._first))
        number = np.unique(self._first)
        name = split(self.root)[1].partition("?")[0].removesuffix(".bin")  # persons of two files are not the same
        columns = {
            "key": [_key(first) for first in number.tolist()],
            "identity": [f"{name}-{_key(person)}" for person in persons[number].tolist()],
            "number": number,
        }
        images = pa.table(columns)
        return PartListing(images=images, image_size=size_of_first(self, part, images))

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        file, numbers = self._opened(), images["number"].to_pylist()
        for number, data in zip(numbers, file.read(numbers), strict=True):
            image = file.images[number]
            offset, member = None if isinstance(image, bytes) else image.offset, f"image {number}"
            if isinstance(data, PickleError):
                yield Fault(shard=self.root, member=member, offset=offset, reason=str(data), kind="unreadable")
            else:
                yield SourceImage(data, self.root, member, offset)

    def write_beside(self, dataset: Dataset) -> None:
        keys = [_key(first) for first in self._first.tolist()]
        file = self._opened()
        write_pairs_csv(dataset, keys[0::2], keys[1::2], file.is_same, file.fold)

    def _opened(self) -> BinFile:
        assert self._file is not None, "prepare is called first"
        return self._file


def _persons(a: NDArray[np.int64], b: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return for each image the first of those that pairs (a, b) connect with it."""
    from scipy.sparse import coo_array  # slow to import, and every run imports this module
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count))
    _, component = connected_components(links, directed=False)
    return np.unique(component, return_index=True)[1][component]


def _key(number: int) -> str:
    return f"{number:06d}"
