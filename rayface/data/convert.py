"""Convert face sets of other shapes into dataset directories."""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import simplejpeg

from rayface.data.dataset import Dataset
from rayface.data.decode import SNIFF_BYTES, decode_image, image_format, orientation
from rayface.data.shards.samples import Fault
from rayface.data.sources.folder import Listing, fault_of, has_image_suffix, list_images, unique_keys
from rayface.data.sources.webdataset import convert_webdataset
from rayface.data.writer import DEFAULT_SHARD_SIZE, ShardWriter
from rayface.machine import num_cpus
from rayface.progress import phase
from rayface.storage import DataError, Source, one_line, split

_AHEAD = 64  # images in memory while they wait for their place in a shard
_MAX_BYTES = 1 << 30  # of a file that may be an image

_Out = TypeVar("_Out")


def convert_folder(
    src: str | Path,
    out: str | Path,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    layout: str = "shuffled",
    seed: int = 0,
    image_size: int = 112,
    quality: int = 95,
    name: str | None = None,
) -> Dataset:
    """Convert a folder with one folder of images for each identity, into shards shuffled as a whole.

    Upright JPEGs of image_size x image_size pixels are copied byte for byte; all other images are turned upright,
    resized to it, not cropped (area where they shrink), and encoded with `quality`. Images are told by their content
    (see decode_image), whatever their names. Those that cannot be read and all else that is left out are the faults of
    the dataset returned: `num_lost` of a fault is the number of things, `kind` why (LeftOut). No identity is without an
    image. See list_images for hidden folders and links.

    A first pass lists paths, a second looks for one image of each identity that can be read, a third reads all images
    in their final order: memory is the list of paths and 64 images.
    Raises DataError where there is no image, or `out` is not empty; ValueError for settings out of range.
    """
    if layout not in ("shuffled", "by_identity"):
        raise ValueError(f"layout {layout!r}: must be shuffled or by_identity")
    if image_size < 1 or not 1 <= quality <= 100:
        raise ValueError(f"image_size {image_size}, quality {quality}: must be at least 1, and from 1 to 100")
    root = Path(src).expanduser().resolve()
    listing = list_images(root)
    load = functools.partial(_load, root, size=image_size, quality=quality)
    _drop_empty_identities(listing, load)
    keys = unique_keys(listing.paths)
    order = np.arange(len(listing.paths))
    if layout == "shuffled":
        order = np.random.default_rng(seed).permutation(len(listing.paths))
    out = Path(out) if "://" not in str(out) else out
    with ShardWriter(
        out,
        name=name or split(str(out))[1],
        identities=listing.identities,
        image_size=(image_size, image_size),
        layout=layout,
        source=f"folder {root.name}",
        shard_size=shard_size,
    ) as writer:
        loaded = _ordered(lambda number: load(listing.paths[number]), order.tolist())
        with phase("convert images", parts=len(listing.paths), rows=len(listing.paths)) as current:
            for number, jpeg in loaded:
                if isinstance(jpeg, Fault):
                    listing.left_out.add(jpeg)
                else:
                    writer.add(keys[number], listing.labels[number], jpeg)
                current.advance()
        if not writer.counts.all():
            lost = listing.identities[int(np.argmin(writer.counts))]
            raise DataError(f"{root}: {lost}: its images could be read before and not any more; run it again")
        return dataclasses.replace(writer.finish(), faults=tuple(listing.left_out.faults()))


def _drop_empty_identities(listing: Listing, load: Callable[[str], bytes | Fault]) -> None:
    """Leave out identities none of whose files is an image that can be read, and number the others anew."""
    places: list[list[int]] = [[] for _ in listing.identities]
    for place, label in enumerate(listing.labels):
        places[label].append(place)

    def refused(label: int) -> list[Fault]:
        """Return why each file cannot be read; nothing as soon as one can."""
        faults = []
        for place in places[label]:
            result = load(listing.paths[place])
            if not isinstance(result, Fault):
                return []
            faults.append(result)
        return faults

    empty = [(label, faults) for label, faults in _ordered(refused, range(len(places))) if faults]
    if len(empty) == len(places):
        raise DataError(f"{listing.root}: none of {len(listing.paths)} files can be read; the first: {empty[0][1][0]}")
    for label, faults in empty:
        for fault in faults:
            listing.left_out.add(fault)
        folder = listing.identities[label]
        listing.left_out.add(fault_of(listing.root, folder, "identity", "no image of this identity can be read"))
    dropped = {label for label, _ in empty}
    kept = [place for place, label in enumerate(listing.labels) if label not in dropped]
    new = np.cumsum([label not in dropped for label in range(len(places))]) - 1
    listing.paths = [listing.paths[place] for place in kept]
    listing.labels = new[[listing.labels[place] for place in kept]].tolist()
    listing.identities = [name for label, name in enumerate(listing.identities) if label not in dropped]


def _ordered(work: Callable[[int], _Out], numbers: Iterable[int]) -> Iterator[tuple[int, _Out]]:
    """Yield (number, work(number)) in order, done by threads at most _AHEAD ahead (decoders free the GIL)."""
    waiting: deque[tuple[int, Future[_Out]]] = deque()
    with ThreadPoolExecutor(num_cpus()) as pool:
        for number in numbers:
            waiting.append((number, pool.submit(work, number)))
            if len(waiting) >= _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def _load(root: Path, path: str, *, size: int, quality: int) -> bytes | Fault:
    """Return an image as JPEG bytes of size x size pixels, or why it cannot be."""
    where = str(root / path)
    try:
        with Source(where) as source:
            if image_format(source.read(0, SNIFF_BYTES)) is None and not has_image_suffix(path):
                return fault_of(root, path, "no image", "not an image")
            if source.size > _MAX_BYTES:
                return fault_of(root, path, "image", f"{source.size} bytes, more than {_MAX_BYTES}")
            return _as_jpeg(source.read(0, source.size), size, quality)
    except ValueError as error:
        reason = one_line(error).removeprefix(f"{where}: ")
        return fault_of(root, path, "image", reason)


def _as_jpeg(data: bytes, size: int, quality: int) -> bytes:
    """Return the image as an upright JPEG of size x size; the bytes themselves where they are one that is sound."""
    image = decode_image(data, size)
    if image_format(data[:SNIFF_BYTES]) == "JPEG" and orientation(data) == 1:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width) == (size, size) and colorspace in ("YCbCr", "Gray", "RGB"):
            return data
    return simplejpeg.encode_jpeg(image, quality, "RGB", "420")


CONVERTERS: dict[str, Callable[..., Dataset]] = {"folder": convert_folder, "webdataset": convert_webdataset}
