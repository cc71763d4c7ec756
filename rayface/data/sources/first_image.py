"""Size of the first image of a part, for dataset.json."""

import pyarrow as pa

from rayface.data.decode import decode_image
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource


def size_of_first(source: DatasetSource, part: int, images: pa.Table) -> tuple[int, int] | None:
    """Return (height, width) of the first image of a listing; None if there is none or it cannot be decoded."""
    for image in source.read(part, images.slice(0, 1)):
        if not isinstance(image, Fault):
            try:
                height, width = decode_image(image.data).shape[:2]
            except ValueError:
                return None
            return height, width
    return None
