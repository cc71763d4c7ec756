"""Read images of a source in any order, in threads, as the bytes to write into a dataset."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray

from rayface.data.decode import SNIFF_BYTES, decode_image, image_format, orientation
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, SourceImage, SourceSettings
from rayface.data.sources.listed_images import ListedImages
from rayface.machine import num_cpus
from rayface.storage import one_line

_CHUNK = 256  # images read together; the next chunk is read concurrently
_AHEAD = 64  # calls of map_ordered

_Out = TypeVar("_Out")
_Pieces = list[tuple[NDArray[np.int64], Future[list[bytes | Fault]]]]


def read_in_order(
    source: DatasetSource, images: ListedImages, order: NDArray[np.int64]
) -> Iterator[tuple[int, bytes | Fault]]:
    """Yield (number, bytes or fault) of images in `order`. Memory: two chunks of 256 images."""
    waiting: deque[tuple[NDArray[np.int64], _Pieces]] = deque()
    with ThreadPoolExecutor(num_cpus()) as pool:
        for start in range(0, len(order), _CHUNK):
            numbers = order[start : start + _CHUNK]
            pieces = images.pieces(numbers)
            waiting.append(
                (numbers, [(p.positions, pool.submit(read_images, source, p.part, p.images)) for p in pieces])
            )
            if len(waiting) > 1:
                yield from _finished(*waiting.popleft())
        while waiting:
            yield from _finished(*waiting.popleft())


def _finished(numbers: NDArray[np.int64], pieces: _Pieces) -> Iterator[tuple[int, bytes | Fault]]:
    found: dict[int, bytes | Fault] = {}
    for positions, future in pieces:
        found.update(zip(positions.tolist(), future.result(), strict=True))
    for position, number in enumerate(numbers.tolist()):
        yield number, found[position]


def map_ordered(function: Callable[[int], _Out], numbers: Iterable[int]) -> Iterator[tuple[int, _Out]]:
    """Yield (number, function(number)) in order; threads work at most _AHEAD calls ahead (decoders free the GIL)."""
    waiting: deque[tuple[int, Future[_Out]]] = deque()
    with ThreadPoolExecutor(num_cpus()) as pool:
        for number in numbers:
            waiting.append((number, pool.submit(function, number)))
            if len(waiting) >= _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def read_images(source: DatasetSource, part: int, images: pa.Table) -> list[bytes | Fault]:
    """Return the bytes to write into the dataset, or the fault, for rows of a part's listing."""
    return [
        image if isinstance(image, Fault) else _converted(image, source.settings, is_decoded=source.decodes_listed)
        for image in source.read(part, images)
    ]


def _converted(image: SourceImage, settings: SourceSettings, *, is_decoded: bool) -> bytes | Fault:
    """Return the bytes of an image that can be decoded, resized and encoded if the settings say so."""
    try:
        if settings.image_size:
            return as_jpeg(image.data, settings.image_size, settings.quality)
        if not is_decoded:
            decode_image(image.data)
        return image.data
    except ValueError as error:
        reason = one_line(error)
        return Fault(shard=image.shard, member=image.member, offset=image.offset, reason=reason, kind="image")


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
