"""Embeddings on disk: parquet files with key, label and embedding, ours or anyone's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.credentials import masked
from rayface.storage import (
    DataError,
    atomic_stream,
    join,
    list_files,
    list_names,
    normalise,
    one_line,
    open_arrow,
    read_bytes,
    split,
)

MANIFEST = "embeddings.json"
_PART = b"rayface"  # metadata key of a part of ours
_TYPES = {"fp16": pa.float16(), "fp32": pa.float32()}
_COLUMNS = ["key", "label", "embedding"]
_ROWS = 8192  # decoded at a time
_BUFFER = 2**20
_THREADS = 16  # that open files; each waits for the disk or the store
Dtype = Literal["fp16", "fp32"]


class Rows(NamedTuple):
    """n faces."""

    keys: pa.Array  # (n,) string
    labels: Ints  # (n,)
    embeddings: Floats  # (n, D)


@dataclass(frozen=True, kw_only=True)
class EmbeddingFile:
    path: str
    num_rows: int
    modified: int
    """ns since 1970; 0 where the store keeps no times."""


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """A set of embedding files; small enough to send to workers.

    Attributes:
        files: in the order of their names.
        size: length of an embedding, D.
        dtype: "float16" or "float32".
    """

    files: tuple[EmbeddingFile, ...]
    size: int
    dtype: str

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)


def open_embeddings(path: str | Path) -> Embeddings:
    """Look at embeddings without reading them; those of `rayface embed` are held against their manifest.

    Args:
        path: a parquet file, or a folder of them (local or URI): `key` string, `label` integer, `embedding` list of
            float16, float32 or float64 (read as float32). Lists are of fixed size, plain or large; keys and labels may
            be dictionary-encoded.

    Raises:
        DataError: one line; a missing column, another type, files of different dimension, no rows, files that are not
            those of the manifest.
    """
    root = normalise(path)
    paths, expected = _paths(root)
    if not paths:
        raise DataError(f"{root}: no parquet files in this folder; give what `rayface embed` wrote")
    with ThreadPoolExecutor(_THREADS) as pool:  # a folder may have 42,475 files
        looked = list(pool.map(_look, paths))
    kinds: dict[tuple[int, str], str] = {}
    for each, (rows, kind) in zip(paths, looked, strict=True):
        if rows != expected.get(each, rows):
            raise DataError(
                f"{each}: has {rows} rows, {MANIFEST} says {expected[each]}: delete it, and run the command that "
                "writes it again"
            )
        if kind is not None:
            kinds.setdefault(kind, each)
    if not kinds:
        raise DataError(f"{root}: has no rows; there is nothing to choose from")
    (size, dtype), *others = kinds
    if others:
        (other_size, other_dtype), first = others[0], kinds[size, dtype]
        raise DataError(
            f"{kinds[others[0]]}: embedding: is {other_dtype} of length {other_size}, in {first} it is {dtype} of "
            f"length {size}; all files must come from one model"
        )
    files = tuple(
        EmbeddingFile(path=each, num_rows=rows, modified=modified)
        for (each, modified), (rows, _) in zip(paths.items(), looked, strict=True)
    )
    return Embeddings(files=files, size=size, dtype=dtype)


JOB = "job.json"  # what is being embedded, beside parts that are not all there yet


def _paths(root: str) -> tuple[dict[str, int], dict[str, int]]:
    """When each parquet file of a folder, or the one that is named, was written; the rows that a manifest says."""
    if root.partition("?")[0].endswith(".parquet"):
        folder, wanted = split(root)
        return {root: next((file.mtime_ns for file in list_files(folder) if file.name == wanted), 0)}, {}
    files = list_files(root, "folder of embeddings")
    names = {file.name for file in files}
    if JOB in names and MANIFEST not in names:
        raise DataError(f"{root}: the embeddings were never finished; run the command that writes them again")
    found = {
        join(root, file.name): file.mtime_ns
        for file in files
        if file.name.endswith(".parquet") and not file.name.startswith(".")
    }
    if MANIFEST not in names:
        return found, {}
    expected = {join(root, name): rows for name, rows in _manifest_rows(root).items()}
    if missing := sorted(expected.keys() - found.keys()):
        raise DataError(
            f"{root}: {len(missing)} of {len(expected)} files that {MANIFEST} names are not there ({missing[0]}): run "
            "the command that writes them again"
        )
    if unknown := sorted(found.keys() - expected.keys()):
        raise DataError(f"{unknown[0]}: is not named in {MANIFEST}: must be a file of this job: move it elsewhere")
    return found, expected


def _manifest_rows(root: str) -> dict[str, int]:
    path = join(root, MANIFEST)
    try:
        return {part["path"]: int(part["num_rows"]) for part in json.loads(read_bytes(path))["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {one_line(error)}): delete it, and run the command that "
            "writes it again"
        ) from None


def missing_parts(root: str) -> list[str]:
    """Return names of files that the manifest of a folder lists and that are not there.

    Raises:
        DataError: the manifest cannot be read.
    """
    there = set(list_names(root))
    return [name for name in _manifest_rows(root) if name not in there]


def _look(path: str) -> tuple[int, tuple[int, str] | None]:
    """The rows of a file, and the length and the type of its embeddings if it has any."""
    with _reading(path) as file:
        _check_columns(path, file.schema_arrow)
        rows: int = file.metadata.num_rows
        return rows, _kind(path, file) if rows else None


def _opened(path: str) -> pq.ParquetFile:
    try:
        # Buffered: a column of a large row group is read page by page.
        return pq.ParquetFile(open_arrow(path), buffer_size=_BUFFER)
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({one_line(error)})") from None


@contextmanager
def _reading(path: str) -> Iterator[pq.ParquetFile]:
    """An open file; what Arrow says of its content becomes a DataError that names it."""
    with _opened(path) as file:
        try:
            yield file
        except (pa.ArrowException, OSError) as error:
            if "Expected all lists to be of size" in str(error):  # so Arrow reads a null in a list of fixed size
                raise DataError(f"{path}: embedding: some rows have none; every face needs one") from None
            raise DataError(f"{path}: cannot be read as parquet ({one_line(error)})") from None


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _check_columns(path: str, schema: pa.Schema) -> None:
    for name in ("key", "label", "embedding"):
        if name not in schema.names:
            raise DataError(f"{path}: has no column {name}; embeddings need key, label and embedding")
    key, label, embedding = (_plain_type(schema.field(name).type) for name in ("key", "label", "embedding"))
    if not (pa.types.is_string(key) or pa.types.is_large_string(key) or pa.types.is_string_view(key)):
        raise DataError(f"{path}: key: is {key}, must be string")
    if not pa.types.is_integer(label):
        raise DataError(f"{path}: label: is {label}, must be int64")
    is_list = pa.types.is_fixed_size_list(embedding) or pa.types.is_list(embedding) or pa.types.is_large_list(embedding)
    if not is_list or not pa.types.is_floating(embedding.value_type):
        raise DataError(f"{path}: embedding: is {embedding}, must be a list of float16 or float32")


def _kind(path: str, file: pq.ParquetFile) -> tuple[int, str]:
    """The length and the type of a file's embeddings; that of its first row where lists have no fixed size."""
    kind = file.schema_arrow.field("embedding").type
    dtype = "float16" if pa.types.is_float16(kind.value_type) else "float32"
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size, dtype
    first = next(file.iter_batches(1, columns=["embedding"]))["embedding"][0]
    if not first.is_valid or not len(first):
        raise DataError(f"{path}: embedding: is missing in row 0; every face needs one")
    return len(first), dtype


def read_labels(file: EmbeddingFile) -> Iterator[tuple[pa.Array, Ints]]:
    """Read keys and labels of a file, some rows at a time.

    Raises:
        DataError: a key or a label is missing, a label is negative, or the file has other rows than it had.
    """
    rows = 0
    with _reading(file.path) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=["key", "label"]):
            keys, labels = _keys_and_labels(file.path, batch)
            if len(labels) and labels.min() < 0:
                raise DataError(f"{file.path}: label: {labels.min()}: must not be negative")
            rows += len(labels)
            yield keys, labels
    _refuse_changed(file.path, rows, file.num_rows)


def _keys_and_labels(path: str, batch: pa.RecordBatch) -> tuple[pa.Array, Ints]:
    columns = [_decoded(batch[name]) for name in ("key", "label")]
    for name, column in zip(("key", "label"), columns, strict=True):
        if column.null_count:
            raise DataError(f"{path}: {name}: some rows have none; every face needs one")
    keys, labels = columns
    return keys.cast(pa.string()), labels.cast(pa.int64()).to_numpy()


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _vectors(path: str, keys: pa.Array, lists: pa.Array, size: int, dtype: str) -> Floats:
    """(n, size) values of a column of lists."""
    if lists.null_count:
        row = int(pc.index(pc.is_null(lists), pa.scalar(True)).as_py())
        raise DataError(f"{path}: embedding of {keys[row]}: is missing; every face needs one")
    if not pa.types.is_fixed_size_list(lists.type):
        lengths = pc.list_value_length(lists).to_numpy()
        for row in np.flatnonzero(lengths != size)[:1].tolist():
            raise DataError(
                f"{path}: embedding of {keys[row]}: has {lengths[row]} values, others {size}; all must come from one "
                "model"
            )
    values = lists.flatten()
    if values.null_count:
        row = int(pc.index(pc.is_null(values), pa.scalar(True)).as_py()) // size
        raise DataError(f"{path}: embedding of {keys[row]}: has values that are missing; embed the face anew")
    with np.errstate(over="ignore"):  # of float64; told as infinity
        return values.to_numpy().reshape(-1, size).astype(dtype, copy=False)


def _refuse_changed(path: str, rows: int, expected: int) -> None:
    if rows != expected:
        raise DataError(
            f"{path}: has {rows} rows where it had {expected}: must not change while it is read: start again"
        )


def read_rows(path: str, start: int, stop: int) -> Rows:
    """Read rows [start, stop) of a parquet file, only the row groups that hold them.

    Raises:
        DataError: an embedding is missing, zero, not finite or of another length; its key is named.
    """
    with _reading(path) as file:
        size, dtype = _kind(path, file)
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        at = int(ends[first - 1]) if first else 0
        keys, labels, done = [], [], 0
        embeddings = np.empty((stop - start, size), dtype)
        for batch in file.iter_batches(_ROWS, row_groups=[*range(first, min(last + 1, len(ends)))], columns=_COLUMNS):
            skipped = max(0, start - at)
            at += len(batch)
            part = batch.slice(skipped, max(0, len(batch) - skipped - max(0, at - stop)))
            if len(part):
                own, numbers = _keys_and_labels(path, part)
                embeddings[done : done + len(part)] = _vectors(path, own, part["embedding"], size, dtype)
                done += len(part)
                keys.append(own)
                labels.append(numbers)
            if at >= stop:
                break
    _refuse_changed(path, done, stop - start)
    rows = Rows(pa.concat_arrays(keys), np.concatenate(labels), embeddings)
    _check_directions(path, rows.keys, embeddings)
    return rows


def read_found(path: str, wanted: pa.Array) -> Iterator[Rows]:
    """Yield the rows of a parquet file whose keys are wanted; embeddings only of the row groups that hold one."""
    with _reading(path) as file:
        size, dtype = _kind(path, file) if file.metadata.num_rows else (1, "float32")
        for group in range(file.num_row_groups):
            there = pa.chunked_array(
                [_decoded(batch["key"]) for batch in file.iter_batches(_ROWS, row_groups=[group], columns=["key"])]
            )
            if not pc.any(pc.is_in(there.cast(wanted.type), value_set=wanted)).as_py():
                continue
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=_COLUMNS):
                keys, labels = _keys_and_labels(path, batch)
                found = pc.is_in(keys.cast(wanted.type), value_set=wanted)
                keys, lists = keys.filter(found), batch["embedding"].filter(found)
                yield Rows(keys, labels[found.to_numpy(zero_copy_only=False)], _vectors(path, keys, lists, size, dtype))


def _check_directions(path: str, keys: pa.Array, embeddings: NDArray[Any]) -> None:
    # A sum of squares in float32 shows all three faults at once; what overflows it is looked at again.
    wide = embeddings.astype(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", wide, wide)
    for row in np.flatnonzero(~(np.isfinite(squares) & (squares > 0))).tolist():
        values = wide[row]
        if not np.isfinite(values).all():
            raise DataError(f"{path}: embedding of {keys[row]}: has NaN or infinity in it; embed the face anew")
        if not values.any():
            raise DataError(f"{path}: embedding of {keys[row]}: is all zeros, without a direction; embed the face anew")


def write_part(
    path: str, batches: Iterable[tuple[list[str], Ints, Floats]], *, size: int, dtype: Dtype, note: dict[str, Any]
) -> int:
    """Write a parquet file of embeddings, which appears whole or not at all; return its rows.

    Args:
        batches: (keys, labels (n,), embeddings (n, D)), each a row group.
        note: kept in the file's metadata for `part_note`; taken after the last batch.
    """
    kind = _TYPES[dtype]
    schema = pa.schema({"key": pa.string(), "label": pa.int64(), "embedding": pa.list_(kind, size)})
    num_rows = 0
    with (
        atomic_stream(path) as stream,
        pq.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as writer,
    ):
        for keys, labels, embeddings in batches:
            values = pa.array(embeddings.astype(kind.to_pandas_dtype()).ravel(), kind)
            lists = pa.FixedSizeListArray.from_arrays(values, size)
            writer.write_table(pa.table([pa.array(keys, pa.string()), pa.array(labels), lists], schema=schema))
            num_rows += len(keys)
        writer.add_key_value_metadata({_PART: json.dumps(masked(note)).encode()})
    return num_rows


def part_note(path: str) -> tuple[int, dict[str, Any]]:
    """Return the rows of a part that `write_part` wrote, and its note.

    Raises:
        DataError: it is no such file.
    """
    with _opened(path) as file:
        metadata = file.metadata
        note = (metadata.metadata or {}).get(_PART)
        if note is None:
            raise DataError(f"{path}: was not written by rayface; give a folder of its own")
        return metadata.num_rows, json.loads(note)
