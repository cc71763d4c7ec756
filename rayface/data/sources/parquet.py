"""Source: parquet files with a column of image bytes, as Hugging Face's `datasets` and pandas write them."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayface.data.classes import MAX_LABEL
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource, PartListing, SourceImage, SourceSettings
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.first_image import size_of_first
from rayface.data.sources.image_file import has_image_suffix
from rayface.data.sources.parquet_files import find_files, missing_files
from rayface.data.sources.parquet_rows import RowReaders, mean_bytes
from rayface.storage import DataError, join, one_line
from rayface.storage.parquet import MAX_TEXT, open_parquet

logger = logging.getLogger(__name__)

_LABELS = ("label", "labels", "identity", "identity_id", "person", "person_id", "subject", "subject_id", "class", "cls")
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_KEYS = ("key", "__key__")
_REMEDY = "set convert.options.label=NAME of another column"


@dataclass(frozen=True, kw_only=True)
class ParquetSettings(SourceSettings):
    """Settings of parquet files.

    Attributes:
        image: column of the images, bytes or a struct with `bytes`; None: the only one, or one named image, jpg, ...
        label: column of the identities, integers or names; None: one named label, identity, ...
    """

    image: str | None = None
    label: str | None = None


class _Part(NamedTuple):
    """A row group of a file."""

    path: str
    name: str
    group: int


@dataclass(frozen=True)
class _Columns:
    """Columns that are read: of the image's bytes and path (in a struct, after a dot), the label, the key.

    `names` are those of a ClassLabel; `is_named`: the label is a name.
    """

    image: str
    path: str | None
    label: str
    key: str | None
    names: Sequence[str] | None
    is_named: bool


class ParquetSource(DatasetSource):
    """A parquet file, or all in and below a folder; a part is a row group.

    Names of labels are those of Hugging Face's ClassLabel. A key is the image's path, the column `key` or `__key__`, or
    the number of the row. Row groups of any size are streamed.
    """

    kind = "parquet"
    settings_class = ParquetSettings
    expects = "parquet files with a column of images and one of labels"
    reads_forward = True

    def __init__(self, src: str | Path, settings: SourceSettings | None = None):
        super().__init__(src, settings)
        self._parts: list[_Part] = []
        self._columns: _Columns | None = None
        self._readers = RowReaders()
        self._missing: list[Fault] = []

    def prepare(self, near: str) -> None:
        names = self.files()
        self._missing = missing_files(self.root, names)
        for name in names:
            path = join(self.root, name) if name else self.root
            with _opened(path) as file:
                columns = _columns_of(path, file, self.settings)
                stem = (name or os.path.basename(path.partition("?")[0])).removesuffix(".parquet")
                self._parts += [_Part(path, f"{stem}-{group:05d}", group) for group in range(file.num_row_groups)]
            if self._columns not in (None, columns):
                raise DataError(
                    f"{path}: its columns, type of label or class names differ from those of {self._parts[0].path}"
                )
            self._columns = columns
        if not self._parts:
            raise DataError(f"{self.root}: its parquet files have no rows")

    def files(self) -> list[str]:
        """Return the names of the files to read, see `find_files`."""
        return find_files(self.root)

    def parts(self) -> Sequence[str]:
        return [part.name for part in self._parts]

    def input_files(self) -> Sequence[str]:
        return list(dict.fromkeys(part.path for part in self._parts))

    def list_images(self, part: int) -> PartListing:
        (path, _, group), columns = self._parts[part], self._found()
        faults = FaultLog(self.root, self._missing if part == 0 else ())
        wanted = [column for column in (columns.label, columns.path, columns.key) if column]
        with _opened(path, wanted) as file:
            num_rows = file.metadata.row_group(group).num_rows
            if (long := next((name for name in wanted if mean_bytes(file, group, name) > MAX_TEXT), None)) is not None:
                raise DataError(f"{path}: {long}: its values have more than {MAX_TEXT:,} bytes: {_REMEDY}")
            try:
                table = file.read_row_group(group, columns=wanted)
            except (pa.ArrowException, OSError) as error:
                reason = f"row group {group} cannot be read ({one_line(error)})"
                faults.add(Fault(shard=path, member=None, reason=reason, num_lost=num_rows, kind="not read"))
                return PartListing(images=_listing([], pa.array([], pa.int64()), []), faults=faults)
        fields = {column: _text(path, column, _field(table, column)) for column in wanted}
        labels = _decoded(fields[columns.label])
        is_valid = _valid(labels)
        rows = pc.indices_nonzero(is_valid).to_pylist()
        for row in pc.indices_nonzero(pc.invert(is_valid)).to_pylist():
            reason = f"label {labels[row].as_py()} is not a number from 0 to {MAX_LABEL}"
            faults.add(Fault(shard=path, member=_member(group, row), reason=reason, kind="label"))
        given = next((column for column in (columns.path, columns.key) if column), None)
        keys = fields[given].to_pylist() if given else [None] * num_rows
        images = _listing([_key(keys[row], group, row) for row in rows], labels.take(pa.array(rows, pa.int64())), rows)
        return PartListing(images=images, faults=faults, image_size=size_of_first(self, part, images))

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        path, _, group = self._parts[part]
        rows = images["row"].to_pylist()
        for row, found in zip(rows, self._readers.read(path, group, self._found().image, rows), strict=True):
            if isinstance(found, bytes):
                yield SourceImage(found, path, _member(group, row))
            else:
                reason = found or "no bytes"
                yield Fault(shard=path, member=_member(group, row), reason=reason, kind="unreadable")

    def for_task(self) -> ParquetSource:
        own = copy.copy(self)
        own._readers = RowReaders()
        return own

    def identity_names(self, labels: Sequence[int]) -> list[str] | None:
        names = self._found().names
        if names is None:
            return None
        if labels[-1] >= len(names) or len(set(names)) < len(names):
            why = f"{len(names)} names, but a label {labels[-1]}" if labels[-1] >= len(names) else "names occur twice"
            logger.warning("%s: its ClassLabel gives no names to the identities: %s", self.root, why)
            return None
        return [names[label] for label in labels]

    def close(self) -> None:
        self._readers.close()

    def _found(self) -> _Columns:
        assert self._columns is not None, "prepare is called first"
        return self._columns


def _opened(path: str, with_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a parquet file, columns of text as dictionaries; DataError if it is none."""
    try:
        return open_parquet(path, max_value=None, read_dictionary=list(with_dictionary))
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({one_line(error)}): download it again, or remove it") from None


def _columns_of(path: str, file: pq.ParquetFile, settings: SourceSettings) -> _Columns:
    """Find the columns in the schema; DataError if that is ambiguous."""
    assert isinstance(settings, ParquetSettings)
    schema = file.schema_arrow
    image = settings.image or _one(path, "image", _IMAGES, [field.name for field in schema if _holds_bytes(field.type)])
    others = [field.name for field in schema if field.name != image and _is_label(field.type)]
    label = settings.label or _one(path, "label", _LABELS, others)
    for name, column, is_right, what in (
        ("image", image, _holds_bytes, "bytes or a struct with bytes"),
        ("label", label, _is_label, "integers or names"),
    ):
        if column not in schema.names or not is_right(schema.field(column).type):
            has = ", ".join(schema.names)
            raise DataError(f"{path}: convert.options.{name}: {column!r} must be a column of {what}; it has {has}")
    kind = schema.field(image).type
    is_struct = pa.types.is_struct(kind)
    has_path = is_struct and any(kind.field(number).name == "path" for number in range(kind.num_fields))
    return _Columns(
        image=f"{image}.bytes" if is_struct else image,
        path=f"{image}.path" if has_path else None,
        label=label,
        key=next((name for name in _KEYS if name in schema.names), None),
        names=_class_names(schema, label),
        is_named=not pa.types.is_integer(_value_type(schema.field(label).type)),
    )


def _one(path: str, what: str, usual: Sequence[str], found: Sequence[str]) -> str:
    """Return the only column, or the first that has a usual name."""
    named = [name for name in usual if name in found]
    if named or len(found) == 1:
        return named[0] if named else found[0]
    why = f"several columns may be the {what}: {', '.join(found)}" if found else f"no column of {what}s"
    raise DataError(f"{path}: {why}: set convert.options.{what}=NAME")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(n).name == "bytes" and _holds_bytes(kind.field(n).type) for n in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_label(kind: pa.DataType) -> bool:
    kind = _value_type(kind)
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _class_names(schema: pa.Schema, label: str) -> Sequence[str] | None:
    """Return the names of a ClassLabel, which `datasets` describes in the schema's metadata."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _field(table: pa.Table, column: str) -> pa.ChunkedArray:
    name, _, child = column.partition(".") if column not in table.column_names else (column, "", "")
    return pc.struct_field(table[name], child) if child else table[name]


def _text(path: str, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values, in texts \\xff for a byte that is not UTF-8; DataError for texts that are too long for names."""
    for chunk in values.chunks:
        texts = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
        if not pa.types.is_integer(texts.type) and (pc.max(pc.binary_length(texts)).as_py() or 0) > MAX_TEXT:
            raise DataError(f"{path}: {column}: a value has more than {MAX_TEXT:,} bytes: {_REMEDY}")
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        raw = values.cast(_value_type(values.type)).cast(pa.large_binary()).to_pylist()
        return pa.chunked_array([[text if text is None else text.decode("utf-8", "backslashreplace") for text in raw]])
    return values


def _decoded(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return labels as int64 or strings; those beyond int64 become null."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_integer(labels.type):
        if labels.type == pa.uint64():
            labels = pc.if_else(pc.less_equal(labels, MAX_LABEL), labels, None)
        return labels.cast(pa.int64())
    return labels.cast(pa.string())


def _valid(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_string(labels.type):
        return pc.is_valid(labels)
    return pc.fill_null(pc.and_(pc.greater_equal(labels, 0), pc.less_equal(labels, MAX_LABEL)), False)


def _listing(keys: list[str], labels: pa.Array, rows: list[int]) -> pa.Table:
    return pa.table({"key": pa.array(keys, pa.string()), "identity": labels, "row": pa.array(rows, pa.int64())})


def _key(given: str | None, group: int, row: int) -> str:
    if not given:
        return f"{group:05d}-{row:08d}"
    return given.rpartition(".")[0] if has_image_suffix(given) else given


def _member(group: int, row: int) -> str:
    return f"row {row} of row group {group}"
