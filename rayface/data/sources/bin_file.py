"""InsightFace's .bin files: a pickle of the images of pairs, and whether each pair shows one person."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.data.sources.pickle_values import Array, Bytes, PickleError, Span
from rayface.data.sources.pickled import read_pickle
from rayface.storage import DataError, Source, windowed
from rayface.values import counted

_WINDOW = 1 << 20
_FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class BinFile:
    """P pairs of images.

    Attributes:
        images: 2P byte strings, images 2p and 2p + 1 are pair p; long ones are positions in the file.
        is_same: (P,), whether both images show one person.
    """

    path: str
    images: list[Bytes]
    is_same: NDArray[np.bool_]

    @property
    def fold(self) -> NDArray[np.int64]:
        """Fold of each pair (P,): ten consecutive folds of equal size, the first ones of one more."""
        parts = np.array_split(np.arange(len(self.is_same)), _FOLDS)
        return np.repeat(np.arange(_FOLDS), [len(part) for part in parts])

    def first_equal(self) -> NDArray[np.int64]:
        """Return for each image (2P,) the number of the first one with the same bytes. Reads all."""
        seen: dict[bytes, int] = {}
        first = []
        for number, data in enumerate(self.read(range(len(self.images)))):
            digest = b"%d" % number if isinstance(data, PickleError) else hashlib.sha256(data).digest()
            first.append(seen.setdefault(digest, number))
        return np.array(first, np.int64)

    def read(self, numbers: Iterable[int]) -> Iterator[bytes | PickleError]:
        """Yield the bytes of images, or why they cannot be read."""
        with Source(self.path) as source:
            for number in numbers:
                image = self.images[number]
                try:
                    yield image if isinstance(image, bytes) else image.read(source.read)
                except PickleError as error:
                    yield error


def open_bin(path: str) -> BinFile:
    """Read the structure of a .bin file, of Python 2 or 3, without its images.

    Memory: about 100 bytes an image.

    Raises:
        DataError: the file is not one: truncated, corrupt, or with other objects in it, none of which is ever created.
    """
    with Source(path) as source:
        try:
            value = read_pickle(windowed(source, _WINDOW), source.size)
            images, is_same = _checked(value, source)
        except PickleError as error:
            raise DataError(f"{path}: not a .bin file of images and pairs ({error})") from None
    return BinFile(path=path, images=images, is_same=is_same)


def _checked(value: object, source: Source) -> tuple[list[Bytes], NDArray[np.bool_]]:
    if not isinstance(value, tuple | list) or len(value) != 2 or not isinstance(value[0], list | tuple):
        raise PickleError("it must be a pair of a list of images and a list of bools")
    images = [_image(item, number) for number, item in enumerate(value[0])]
    is_same = _bools(value[1], source)
    if not len(is_same) or len(images) != 2 * len(is_same):
        raise PickleError(f"{counted(len(images), 'image')} for {counted(len(is_same), 'pair')}: each pair has two")
    return images, is_same


def _image(item: object, number: int) -> Bytes:
    if isinstance(item, Array) and item.dtype == "u1":
        item = item.data
    if isinstance(item, bytes) or (isinstance(item, Span) and not item.is_text):
        return item
    raise PickleError(f"image {number} is {type(item).__name__} and not bytes")


def _bools(value: object, source: Source) -> NDArray[np.bool_]:
    if isinstance(value, Array):
        data = value.data if isinstance(value.data, bytes) else value.data.read(source.read)
        value = list(data)
    if not isinstance(value, list | tuple) or not all(type(item) in (bool, int) and item in (0, 1) for item in value):
        raise PickleError("the second of the pair must be a list of bools")
    return np.array(value, bool)
