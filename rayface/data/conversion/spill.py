"""Second pass of a conversion: read every image once, in the order of the source, into pieces in the final order.

A piece is a file of records, sorted by their place in the final order, so a range of that order is one range of bytes
in every piece. Reading a source in its own order needs no random access to it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.conversion.listing import Unit
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.work_folder import WorkFolder, note_of, read_table, write_table
from rayface.data.shards.members import Image, sample_size
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, SourceImage
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.reading import map_ordered, read_images
from rayface.storage import atomic_stream, exists

_READ, _READ_BYTES = 128, 8 << 20  # images that a thread reads at once, and their bytes
_FIRST = 8  # images that are read before their size is known
_THREADS = 4  # of a task: they wait for the disk or the store, and decode without the GIL
_HEADER = struct.Struct("<QIHHI")  # place, label, bytes of the key, of the measures and of the image
_LABEL_BITS = 31
_NUMBER_BITS = 33
PIECE_BYTES = 512 << 20


class Record(NamedTuple):  # not a dataclass: made once per image
    """An image at its place in the final order, and its measures as float32."""

    place: int
    label: int
    key: bytes
    measures: bytes
    image: Image


def places(numbers: NDArray[np.int64], labels: NDArray[np.int32], settings: ConvertSettings) -> NDArray[np.uint64]:
    """Return the place of each image, by its number, in the final order; no two places are equal.

    Shuffled places are a bijection of the number to 64 bits (SplitMix64, Steele et al. 2014), so that the order depends
    only on seed and number.
    """
    if settings.layout == "by_identity":
        return labels.astype(np.uint64) << np.uint64(_NUMBER_BITS) | numbers.astype(np.uint64)
    start = hashlib.blake2b(str(settings.seed).encode(), digest_size=16).digest()
    first, second = np.frombuffer(start, np.uint64)
    return _mixed(_mixed(numbers.astype(np.uint64) + first) ^ second)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's output for each state."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def key_digest(key: bytes) -> int:
    """Return 64 bits of a key; their sum over all keys, modulo 2^64, depends on no order."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


class _ReadSize:
    """Number of images to read at once, so that photographs of megabytes are not read ahead by the hundred."""

    def __init__(self) -> None:
        self._images = self._bytes = 0

    def add(self, found: Sequence[SourceImage | Fault]) -> None:
        images = [image for image in found if not isinstance(image, Fault)]
        self._images += len(images)
        self._bytes += sum(len(image.data) for image in images)

    @property
    def rows(self) -> int:
        if not self._images:
            return _FIRST
        return max(1, min(_READ, _READ_BYTES * self._images // max(1, self._bytes)))


@dataclass(frozen=True, kw_only=True)
class SpilledUnits:
    """Number of files of a task's units, of images that were read and that were lost, and the first fault."""

    num_listed: int
    num_images: int
    num_lost: int
    first: Fault | None


@dataclass(frozen=True, kw_only=True)
class Spill:
    """Reads units into pieces.

    Memory: `piece_bytes`, and the images that the threads read ahead.
    """

    sources: Sequence[DatasetSource]
    work: WorkFolder
    settings: ConvertSettings
    piece_bytes: int = PIECE_BYTES

    def __call__(self, units: Sequence[Unit]) -> SpilledUnits:
        """Write the pieces of each unit of a task and, last, its record, unless it exists."""
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it cannot read is a fault
        try:
            return self._read(units)
        finally:
            cv2.utils.logging.setLogLevel(level)

    def _read(self, units: Sequence[Unit]) -> SpilledUnits:
        own = replace(self, sources=[source.for_task() for source in self.sources])
        num_images, faults = 0, FaultLog(self.sources[0].root)
        for unit in units:
            path = self.work.spilled(unit.number)
            if not exists(path):
                own._spill(unit, path)
            note = note_of(read_table(path))
            num_images += sum(note["pieces"])
            faults.load(note["faults"])
        num_listed = sum(map(len, units))
        return SpilledUnits(
            num_listed=num_listed, num_images=num_images, num_lost=faults.num_lost, first=faults.first()
        )

    def _spill(self, unit: Unit, path: str) -> None:
        lost: list[tuple[str, Fault]] = []
        pieces: list[pa.Table] = []
        records: list[Record] = []
        num_bytes = 0
        for record in self._records(unit, lost):
            records.append(record)
            num_bytes += len(record.image)
            if num_bytes >= self.piece_bytes:
                pieces.append(self._write_piece(unit, len(pieces), records))
                records, num_bytes = [], 0
        if records or not pieces:
            pieces.append(self._write_piece(unit, len(pieces), records))
        note = {
            "faults": FaultLog(self.sources[0].root, (fault for _, fault in lost)).state(),
            "lost": [(key, fault.kind, str(fault)) for key, fault in lost],
            "pieces": list(map(len, pieces)),
        }
        write_table(path, pa.concat_tables(pieces), note)

    def _records(self, unit: Unit, lost: list[tuple[str, Fault]]) -> Iterator[Record]:
        """Yield the images of a unit that can be read; keys and faults of the others are added to `lost`."""
        table = read_table(self.work.unit(unit.number))
        labels = table["label"].to_numpy()
        order = places(np.arange(unit.first, unit.first + len(unit)), labels, self.settings).tolist()
        keys = (key for chunk in table["key"].chunks for key in chunk.to_pylist())
        images = self._images(unit)
        for place, label, key, image in zip(order, labels.tolist(), keys, images, strict=True):
            if isinstance(image, Fault):
                lost.append((key, image))
            else:
                measures = np.array(image.measures, np.float32).tobytes()
                yield Record(place, label, key.encode(), measures, image.data)

    def _images(self, unit: Unit) -> Iterator[SourceImage | Fault]:
        quality = self.settings.jpeg_quality

        def read(rows: tuple[int, int, pa.Table]) -> list[SourceImage | Fault]:
            source, part, images = rows
            return read_images(self.sources[source], part, images, quality=quality)

        size = _ReadSize()
        for found in map_ordered(read, self._rows(unit, size), threads=_THREADS):
            size.add(found)
            yield from found

    def _rows(self, unit: Unit, size: _ReadSize) -> Iterator[tuple[int, int, pa.Table]]:
        for span in unit.spans:
            listing = read_table(self.work.listing(span.source, span.part)).replace_schema_metadata(None)
            start = span.start
            while start < span.stop:
                rows = min(size.rows, span.stop - start)
                yield span.source, span.part, listing.slice(start, rows)
                start += rows

    def _write_piece(self, unit: Unit, number: int, records: list[Record]) -> pa.Table:
        """Write records by place; return their rows of the unit's record."""
        records.sort()
        sizes = []
        with atomic_stream(self.work.piece(unit.number, number)) as stream:
            for place, label, key, measures, image in records:
                stream.write(_HEADER.pack(place, label, len(key), len(measures), len(image)))
                stream.write(key + measures)
                stream.write(image)
                sizes.append(sample_size(key.decode(), image))
        return pa.table(
            {
                "place": pa.array([record.place for record in records], pa.uint64()),
                "label": pa.array([record.label for record in records], pa.int32()),
                "sample_bytes": pa.array(sizes, pa.int64()),
                "record_bytes": pa.array([record_size(record) for record in records], pa.int64()),
                "key_digest": pa.array([key_digest(record.key) for record in records], pa.uint64()),
            }
        )


def record_size(record: Record) -> int:
    return _HEADER.size + len(record.key) + len(record.measures) + len(record.image)


def read_records(data: bytes) -> Iterator[Record]:
    """Yield the records of a range of a piece; their images are views of `data`."""
    at, view = 0, memoryview(data)
    while at < len(data):
        place, label, key_bytes, measures_bytes, image_bytes = _HEADER.unpack_from(data, at)
        key = at + _HEADER.size
        measures = key + key_bytes
        image = measures + measures_bytes
        at = image + image_bytes
        yield Record(place, label, data[key:measures], data[measures:image], view[image:at])
