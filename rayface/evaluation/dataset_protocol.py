"""Protocols whose images are rows of a dataset, and are left out if they are corrupt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.protocol import EvaluationProtocol


class DatasetProtocol(EvaluationProtocol):
    """A protocol on images of a dataset; images are read when they are embedded."""

    def __init__(self, source: ImageRows, image_size: int) -> None:
        self._source, self._image_size = source, image_size

    @property
    def source(self) -> ImageRows:
        return self._source

    @property
    def num_images(self) -> int:
        return len(self._source)

    def read_images(self, first: int, last: int) -> NDArray[np.uint8]:
        return self._source.read(first, last, self._image_size)[0]

    def read_readable(self, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        images, faults = self._source.read(first, last, self._image_size)
        readable = np.ones(last - first, bool)
        readable[list(faults)] = False
        return images, readable
