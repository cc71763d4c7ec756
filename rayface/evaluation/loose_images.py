"""Images in a folder that are aligned by landmarks when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayface.data.decode import decode_image
from rayface.data.shards.samples import Fault
from rayface.data.sources.image_file import read_image_file
from rayface.evaluation.alignment import align

_THREADS = 8  # decoding and alignment release the GIL


@dataclass(frozen=True, kw_only=True, eq=False)
class LooseImages:
    """Photographs in a folder and the landmarks (n, 5, 2) of their faces, pixels."""

    folder: Path
    names: Sequence[str]
    landmarks: NDArray[np.float64]

    def states(self) -> list[str]:
        """Return size and time of each file, in one text: an image that is written anew under its name differs."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._state, self.names))

    def _state(self, name: str) -> str:
        try:
            found = (self.folder / name).stat()
        except (OSError, ValueError):
            return "missing"
        return f"{found.st_size} {found.st_mtime_ns}"

    def read(self, first: int, last: int, image_size: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return aligned images `first` to `last` - 1, uint8 RGB, and whether each is readable."""
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(lambda place: self._read(place, image_size), range(first, last)))
        images = np.zeros((last - first, image_size, image_size, 3), np.uint8)
        for place, image in enumerate(found):
            if image is not None:
                images[place] = image
        return images, np.array([image is not None for image in found])

    def _read(self, place: int, image_size: int) -> NDArray[np.uint8] | None:
        try:
            found = read_image_file(str(self.folder), self.names[place])
            return (
                None if isinstance(found, Fault) else align(decode_image(found.data), self.landmarks[place], image_size)
            )
        except (OSError, ValueError):
            return None
