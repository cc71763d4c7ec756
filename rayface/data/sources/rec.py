"""Source: RecordIO files (.rec) of InsightFace and MXNet's im2rec, read without MXNet."""

from __future__ import annotations

import logging
import math
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv

from rayface.data.classes import MAX_LABEL
from rayface.data.shards.samples import Fault
from rayface.data.shards.tar import Fetch
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings, archives_below
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.first_image import size_of_first
from rayface.data.sources.lst import names_in_lst
from rayface.data.sources.recordio import (
    Gap,
    ImageRecord,
    Record,
    RecordError,
    image_record,
    iter_records,
    read_record,
)
from rayface.storage import DataError, Source, exists, forward_reads, join, list_entries, one_line, printable
from rayface.values import counted

logger = logging.getLogger(__name__)

_PART_BYTES = 128 << 20
_TEXT_BYTES = 16 << 20  # of an .idx at once
_EXACT = 1 << 24  # float32 has every integer below


class _Part(NamedTuple):
    """The records that begin in bytes [start, stop) of a file."""

    path: str
    start: int
    stop: int


class RecSource(DatasetSource):
    """A .rec file, or all of a folder, which are one label space; a part is 128 MiB of a file.

    Every record is an image, apart from InsightFace's tables of identities: several labels without an image.
    The .idx is only compared with the size of its .rec. Names of identities are the folders of images in the .lst.
    """

    kind = "rec"
    expects = ".rec files with a header and an image in each record"

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        super().__init__(src, settings)
        self._files: list[str] = []
        self._parts: list[_Part] = []
        self._size: dict[str, int] = {}
        self._faults: list[Fault] = []

    def prepare(self, near: str) -> None:
        self._files, self._faults = _find_files(self.root)
        for path in self._files:
            with Source(path) as source:
                size = self._size[path] = source.size
            if not size:
                self._faults.append(_fault(path, None, "the file is empty", "truncated"))
            self._parts += [_Part(path, start, min(start + _PART_BYTES, size)) for start in range(0, size, _PART_BYTES)]
            self._faults += _missing_by_idx(path, size)
        if not self._parts:
            raise DataError(f"{self._files[0]}: the file is empty")

    def parts(self) -> Sequence[str]:
        return [f"{_stem(part.path)}-{part.start // _PART_BYTES:05d}" for part in self._parts]

    def input_files(self) -> Sequence[str]:
        return [file for path in self._files for file in (path, _beside(path, ".idx"), _beside(path, ".lst"))]

    def list_images(self, part: int) -> PartListing:
        path, start, stop = self._parts[part]
        faults = FaultLog(self.root, self._faults if part == 0 else ())
        keys, labels, offsets, ends = [], array("q"), array("q"), array("q")
        last: ImageRecord | None = None
        with Source(path) as source:
            fetch = forward_reads(source)
            for record in iter_records(fetch, start, stop, self._size[path]):
                if isinstance(record, Gap):
                    faults.add(_fault(path, record.offset, record.reason, record.kind))
                    continue
                try:
                    header = image_record(record.head, record.num_bytes)
                    is_table = header.start == record.num_bytes and header.num_labels > 0
                    last = header if not is_table or record.offset == 0 else None
                    if is_table:
                        continue
                    label = _label_of(header)
                except RecordError as error:
                    faults.add(_fault(path, record.offset, str(error), error.kind))
                    continue
                keys.append(f"{header.id:09d}")
                for column, value in ((labels, label), (offsets, record.offset), (ends, record.end)):
                    column.append(value)
            if last and stop == self._size[path] and not exists(_beside(path, ".idx")):
                fault = _missing_by_record_0(path, fetch, stop, last)
                if fault:
                    faults.add(fault)
        columns = {"key": pa.array(keys, pa.string()), "identity": labels, "offset": offsets, "end": ends}
        table = pa.table({name: pa.array(column) for name, column in columns.items()})
        return PartListing(images=table, faults=faults, image_size=size_of_first(self, part, table))

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        path = self._parts[part].path
        with Source(path) as source:
            fetch = forward_reads(source)
            for key, offset, end in zip(*(images[name].to_pylist() for name in ("key", "offset", "end")), strict=True):
                try:
                    content = read_record(fetch, offset, end)
                    start = image_record(content, len(content)).start
                except RecordError as error:
                    yield _fault(path, offset, str(error), error.kind, error.num_lost)
                else:
                    yield SourceImage(content[start:], path, f"record {int(key)}", offset)

    def identity_names(self, labels: Sequence[int]) -> list[str] | None:
        lists = [lst for path in self._files if exists(lst := _beside(path, ".lst"))]
        names = names_in_lst(lists[0], labels) if lists and len(self._files) == 1 else None
        if lists and names is None:
            rule = "it must be of the only .rec, with a folder of its own for each label"
            logger.warning("%s: gives no names to the identities: %s", printable(lists[0]), rule)
        return names


def _find_files(root: str) -> tuple[list[str], list[Fault]]:
    """Return the file `root`, or the .rec files of that folder, and a fault for each in its sub-folders."""
    if root.partition("?")[0].endswith(".rec"):
        return [root], []
    files, folders = list_entries(root, "folder or .rec file")
    names = [file.name for file in files if file.name.endswith(".rec")]
    if not names:
        raise DataError(f"{root}: no .rec file in this folder: give the file or its folder")
    return [join(root, name) for name in names], archives_below(root, folders, ".rec")


def _label_of(header: ImageRecord) -> int:
    label = header.label
    if not math.isfinite(label) or label != int(label) or not 0 <= label <= MAX_LABEL:
        raise RecordError(f"label {label:g} is not an integer from 0 to {MAX_LABEL}", "label")
    return int(label)


def _missing_by_idx(path: str, size: int) -> list[Fault]:
    """Return a fault if the .idx names records behind the end of its .rec."""
    idx = _beside(path, ".idx")
    if not exists(idx):
        return []
    lost = 0
    try:
        for lines in _lines_in_blocks(idx):
            table = pa_csv.read_csv(
                pa.BufferReader(lines),
                read_options=pa_csv.ReadOptions(column_names=["number", "offset"]),
                parse_options=pa_csv.ParseOptions(delimiter="\t"),
                convert_options=pa_csv.ConvertOptions(column_types={"offset": pa.int64()}),
            )
            lost += int((table["offset"].to_numpy() >= size).sum())
    except pa.ArrowException as error:
        return [_fault(idx, None, f"not read: {one_line(error)}", "index", 0)]
    if not lost:
        return []
    reason = f"truncated: {counted(lost, 'record')} of {os.path.basename(idx)} missing"
    return [_fault(path, size, reason, "truncated", lost)]


def _lines_in_blocks(path: str) -> Iterator[bytes]:
    """Yield a text file in blocks of whole lines."""
    rest = b""
    with Source(path) as source:
        for at in range(0, source.size, _TEXT_BYTES):
            data = rest + source.read(at, min(_TEXT_BYTES, source.size - at))
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if end:
                yield data[:end]
    if rest:
        yield rest


def _missing_by_record_0(path: str, fetch: Fetch, size: int, last: ImageRecord) -> Fault | None:
    """Return a fault if record 0 announces tables of identities, but the last record is an image, or record 0 itself.

    Record 0 has two labels: the numbers of the first table and of the record after the last. They are float32, so
    large ones say nothing.
    """
    record = next(iter_records(fetch, 0, 1, size), None)
    if not isinstance(record, Record):
        return None
    try:
        content = read_record(fetch, record.offset, record.end)
        header = image_record(content, len(content))
    except RecordError:
        return None
    if header.num_labels != 2 or header.start != len(content):
        return None
    first_table, end = struct.unpack_from("<2f", content, len(content) - 8)
    if not 1 < first_table < end < _EXACT:
        return None
    lost = max(1, int(first_table) - 1 - last.id)
    return _fault(
        path, size, f"truncated: {lost} of {counted(int(first_table) - 1, 'image')} missing", "truncated", lost
    )


def _fault(path: str, offset: int | None, reason: str, kind: str, num_lost: int = 1) -> Fault:
    return Fault(shard=path, member=None, offset=offset, reason=reason, num_lost=num_lost, kind=kind)


def _beside(path: str, suffix: str) -> str:
    base, question, query = path.partition("?") if "://" in path else (path, "", "")
    return base.removesuffix(".rec") + suffix + question + query


def _stem(path: str) -> str:
    return os.path.basename(path.partition("?")[0]).removesuffix(".rec")
