"""Read images of a source, in threads, as the bytes to write into a dataset."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

import pyarrow as pa
import simplejpeg

from rayface.data.decode import SNIFF_BYTES, decode_image, image_format, orientation
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, SourceImage
from rayface.pools import thread_pool
from rayface.storage import one_line

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def map_ordered(function: Callable[[_In], _Out], items: Iterable[_In], *, threads: int) -> Iterator[_Out]:
    """Yield function(item) in order; threads work two calls each ahead (decoders free the GIL)."""
    waiting: deque[Future[_Out]] = deque()
    with thread_pool(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_images(
    source: DatasetSource, part: int, images: pa.Table, *, quality: int | None = None
) -> list[SourceImage | Fault]:
    """Return the images as they are written into the dataset, or the fault, for rows of a part's listing.

    Args:
        quality: encode every image as JPEG of this quality; None keeps the bytes unless the source resizes images.
    """
    return [
        image if isinstance(image, Fault) else _converted(image, source, quality) for image in source.read(part, images)
    ]


def _converted(image: SourceImage, source: DatasetSource, quality: int | None) -> SourceImage | Fault:
    """Return an image that can be decoded, resized and encoded if the settings say so."""
    size = source.settings.image_size
    try:
        if quality:
            return image._replace(data=simplejpeg.encode_jpeg(decode_image(image.data, size), quality, "RGB", "420"))
        if size:
            return image._replace(data=as_jpeg(image.data, size, source.settings.quality))
        if not source.decodes_listed:
            decode_image(image.data)
        return image
    except ValueError as error:
        reason = one_line(error)
        return Fault(shard=image.shard, member=image.member, offset=image.offset, reason=reason, kind="unreadable")


def as_jpeg(data: bytes, size: int, quality: int) -> bytes:
    """Return an image as an upright JPEG of size x size pixels; a JPEG that already is one is unchanged.

    Raises:
        ValueError: it cannot be decoded.
    """
    image = decode_image(data, size)
    if image_format(data[:SNIFF_BYTES]) == "JPEG" and orientation(data) == 1:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width) == (size, size) and colorspace in ("YCbCr", "Gray", "RGB"):
            return data
    return simplejpeg.encode_jpeg(image, quality, "RGB", "420")
