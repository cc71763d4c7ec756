"""Convert a source of images to a dataset of tar shards: labels, keys, order, faults; the same for every source."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import simplejpeg
from numpy.typing import NDArray

from rayface.data.dataset import Dataset
from rayface.data.decode import SNIFF_BYTES, decode_image, image_format, orientation
from rayface.data.shards.samples import Fault
from rayface.data.shards.scan import parallel_map
from rayface.data.sources.base import DatasetSource, SourceImage, SourceSettings
from rayface.data.sources.faults import FaultLog
from rayface.data.writer import DEFAULT_SHARD_SIZE, ShardWriter, refuse_not_empty
from rayface.machine import num_cpus
from rayface.progress import phase
from rayface.storage import DataError, is_local, make_folder, normalise, one_line, split

_CHUNK = 256  # images read at once; those of the next chunk are read meanwhile
_READ = 32  # images of one part that one thread reads at once
_AHEAD = 64  # identities looked at ahead

_Out = TypeVar("_Out")


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """How a dataset is written.

    Attributes:
        layout: order of the images: "shuffled" as a whole, or "by_identity".
        shard_size: maximum bytes of a shard.
        seed: of the order; the same seed gives the same bytes.
        name: of the dataset; None: that of its folder.

    Raises:
        ValueError: an unknown layout.
    """

    layout: Literal["shuffled", "by_identity"] = "shuffled"
    shard_size: int = DEFAULT_SHARD_SIZE
    seed: int = 0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("shuffled", "by_identity"):
            raise ValueError(f"layout {self.layout!r}: must be shuffled or by_identity")


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Listed images: tables by part, and for those that are converted their row in all tables and their label.

    `identities` are names, or the labels that the source gives, by label. Memory: 12 bytes an image and its listing.
    """

    tables: Sequence[pa.Table]
    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    identities: Sequence[str | int]
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.rows)

    def pieces(self, numbers: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int, pa.Table]]:
        """Yield (positions in `numbers`, part, rows of its table) of images, at most _READ of a part at once."""
        starts = np.cumsum([0, *map(len, self.tables)])
        rows = self.rows[numbers]
        order = np.argsort(rows, kind="stable")
        parts = np.searchsorted(starts, rows[order], "right") - 1
        edges = np.flatnonzero(np.r_[True, parts[1:] != parts[:-1], True]).tolist()
        for start, stop in itertools.pairwise(edges):
            part = int(parts[start])
            for first in range(start, stop, _READ):
                positions = order[first : min(first + _READ, stop)]
                yield positions, part, self.tables[part].take(rows[positions] - starts[part])


def convert(
    source: DatasetSource,
    out: str | Path,
    settings: ConvertSettings | None = None,
) -> Dataset:
    """Convert all images of a source to a dataset in the folder `out`.

    A first pass lists the images; unless the source decodes them on the way, a second one looks for an image of each
    identity that can be read; the last reads all images in their final order. No identity is without an image. All that
    is left out is among the faults of the dataset returned: `num_lost` is the number of things, `kind` why.

    Memory: the source's listing, and two chunks of 256 images.

    Raises:
        DataError: no image, an output folder that is not empty, or a source that cannot be read; one line.
    """
    settings = settings or ConvertSettings()
    target = normalise(out)
    with _output_folder(target), contextlib.closing(source):
        source.prepare(os.path.dirname(target) if is_local(target) else None)
        faults = FaultLog(source.root)
        images = _listed(source, faults)
        if not source.decodes_listed:
            images = _without_empty_identities(source, images, faults)
        return _write(source, images, target, settings, faults)


@contextlib.contextmanager
def _output_folder(folder: str) -> Iterator[None]:
    """Make the folder before the work begins; after an error, remove it if it is new and still empty."""
    is_new = is_local(folder) and not os.path.exists(folder)
    make_folder(folder)
    refuse_not_empty(folder)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise


def _listed(source: DatasetSource, faults: FaultLog) -> _Images:
    """List all parts and number the identities: names in order of appearance, labels in their own order."""
    parts = range(len(source.parts()))
    listings = []
    with phase("list images", parts=len(parts)) as current:
        for listing in parallel_map(source.list_images, parts, processes=source.lists_in_processes):
            listings.append(listing)
            if listing.faults:
                faults.update(listing.faults)
            current.advance()
        current.rows = sum(len(listing.images) for listing in listings)
    tables = [listing.images.combine_chunks() for listing in listings]
    if not any(map(len, tables)):
        first = f"; the first fault: {faults.first()}" if faults.first() else ""
        raise DataError(f"{source.root}: no images in it: {source.kind} needs {source.expects}{first}")
    identities, labels = _numbered([table["identity"] for table in tables if len(table)])
    sizes = {listing.image_size for listing in listings if listing.image_size}
    return _Images(
        tables=tables,
        rows=np.arange(len(labels)),
        labels=labels.astype(np.int32),
        identities=identities,
        size=sizes.pop() if len(sizes) == 1 else None,
    )


def _numbered(given: Sequence[pa.ChunkedArray]) -> tuple[Sequence[str | int], NDArray[np.int64]]:
    """Return the identities and the new label of each image."""
    if all(pa.types.is_integer(column.type) for column in given):
        old, labels = np.unique(np.concatenate([column.to_numpy() for column in given]), return_inverse=True)
        return old.tolist(), labels
    label_of: dict[str, int] = {}
    found = []
    for column in given:
        names = column.combine_chunks().dictionary_encode()
        labels = np.array([label_of.setdefault(name, len(label_of)) for name in names.dictionary.to_pylist()])
        found.append(labels[names.indices.to_numpy()])
    return list(label_of), np.concatenate(found)


def _without_empty_identities(source: DatasetSource, images: _Images, faults: FaultLog) -> _Images:
    """Leave out identities none of whose images can be read, and number the others anew."""
    order = np.argsort(images.labels, kind="stable")
    bounds = np.searchsorted(images.labels[order], np.arange(len(images.identities) + 1)).tolist()

    def refused(label: int) -> list[Fault]:
        """Return why no image can be read; nothing as soon as one can."""
        found = []
        for number in order[bounds[label] : bounds[label + 1]]:
            ((_, part, rows),) = images.pieces(number[None])
            (image,) = _read_piece(source, part, rows)
            if not isinstance(image, Fault):
                return []
            found.append(image)
        return found

    empty = []
    with phase("check identities", parts=len(images.identities)) as current:
        for label, why in _ordered(refused, range(len(images.identities))):
            if why:
                empty.append((label, why))
            current.advance()
    if len(empty) == len(images.identities):
        raise DataError(f"{source.root}: none of {len(images)} files can be read; the first: {empty[0][1][0]}")
    for label, why in empty:
        reason, name = "no image of this identity can be read", str(images.identities[label])
        for fault in [*why, Fault(shard=source.root, member=name, offset=0, reason=reason, kind="identity")]:
            faults.add(fault)
    is_kept = np.ones(len(images.identities), bool)
    is_kept[[label for label, _ in empty]] = False
    new = np.cumsum(is_kept, dtype=np.int32) - 1
    kept = is_kept[images.labels]
    return dataclasses.replace(
        images,
        rows=images.rows[kept],
        labels=new[images.labels[kept]],
        identities=[name for name, keep in zip(images.identities, is_kept, strict=True) if keep],
    )


def _write(source: DatasetSource, images: _Images, target: str, settings: ConvertSettings, faults: FaultLog) -> Dataset:
    """Write all images in their final order; those that cannot be read any more are faults."""
    if settings.layout == "shuffled":
        order = np.random.default_rng(settings.seed).permutation(len(images))
    else:
        order = np.argsort(images.labels, kind="stable")
    side = source.settings.image_size
    with ShardWriter(
        target,
        name=settings.name or split(target)[1],
        identities=_names(source, images.identities),
        num_classes=len(images.identities),
        image_size=(side, side) if side else images.size,
        layout=settings.layout,
        source=source.title,
        shard_size=settings.shard_size,
    ) as writer:
        keys = _unique_keys(source, images)
        with phase("convert images", parts=len(images), rows=len(images)) as current:
            for number, image in _read(source, images, order):
                if isinstance(image, Fault):
                    faults.add(image)
                else:
                    writer.add(keys[number].as_py(), int(images.labels[number]), image)
                current.advance()
        if not writer.counts.all():
            lost = images.identities[int(np.argmin(writer.counts))]
            raise DataError(f"{source.root}: {lost}: its images could be read before and not any more; run it again")
        return dataclasses.replace(writer.finish(), faults=tuple(faults.faults()))


def _names(source: DatasetSource, identities: Sequence[str | int]) -> list[str] | None:
    if all(isinstance(identity, str) for identity in identities):
        return [str(identity) for identity in identities]
    return source.identity_names([int(identity) for identity in identities])


def _unique_keys(source: DatasetSource, images: _Images) -> pa.Array:
    starts = np.cumsum([0, *map(len, images.tables)])
    bounds = np.searchsorted(images.rows, starts).tolist()
    listed = [
        table["key"].take(images.rows[first:last] - start)
        for table, start, (first, last) in zip(images.tables, starts, itertools.pairwise(bounds), strict=False)
    ]
    return pa.array(source.unique_keys(listed), pa.large_string())


def _read(source: DatasetSource, images: _Images, order: NDArray[np.int64]) -> Iterator[tuple[int, bytes | Fault]]:
    """Yield (number, bytes or fault) of images in `order`; threads read a chunk while the one before it is used."""
    waiting: deque[tuple[list[int], list[tuple[NDArray[np.int64], Future[list[bytes | Fault]]]]]] = deque()

    def finished() -> Iterator[tuple[int, bytes | Fault]]:
        numbers, pieces = waiting.popleft()
        found: dict[int, bytes | Fault] = {}
        for positions, future in pieces:
            found.update(zip(positions.tolist(), future.result(), strict=True))
        for position, number in enumerate(numbers):
            yield number, found[position]

    with ThreadPoolExecutor(num_cpus()) as pool:
        for start in range(0, len(order), _CHUNK):
            numbers = order[start : start + _CHUNK]
            pieces = [
                (positions, pool.submit(_read_piece, source, part, rows))
                for positions, part, rows in images.pieces(numbers)
            ]
            waiting.append((numbers.tolist(), pieces))
            if len(waiting) > 1:
                yield from finished()
        while waiting:
            yield from finished()


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


def _read_piece(source: DatasetSource, part: int, rows: pa.Table) -> list[bytes | Fault]:
    """Return the bytes that go into the dataset, or why there are none, for each row of a part's listing."""
    return [
        image if isinstance(image, Fault) else _converted(image, source.settings, is_decoded=source.decodes_listed)
        for image in source.read(part, rows)
    ]


def _converted(image: SourceImage, settings: SourceSettings, *, is_decoded: bool) -> bytes | Fault:
    """Return the bytes of an image that can be decoded, resized and encoded if the settings say so."""
    try:
        if settings.image_size:
            return _as_jpeg(image.data, settings.image_size, settings.quality)
        if not is_decoded:
            decode_image(image.data)
        return image.data
    except ValueError as error:
        reason = one_line(error)
        return Fault(shard=image.shard, member=image.member, offset=image.offset, reason=reason, kind="image")


def _as_jpeg(data: bytes, size: int, quality: int) -> bytes:
    """Return the image as an upright JPEG of size x size; the bytes themselves if they are a valid one already."""
    image = decode_image(data, size)
    if image_format(data[:SNIFF_BYTES]) == "JPEG" and orientation(data) == 1:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width) == (size, size) and colorspace in ("YCbCr", "Gray", "RGB"):
            return data
    return simplejpeg.encode_jpeg(image, quality, "RGB", "420")
