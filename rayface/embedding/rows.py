"""Read rows of embedding files in parts; every bad row is named by its key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.storage import DataError, one_line
from rayface.storage.parquet import open_parquet

_COLUMNS = ["key", "label", "embedding"]
_ROWS = 8192  # rows decoded at a time
_BUFFER = 2**20


class Rows(NamedTuple):
    """n images."""

    keys: pa.Array  # (n,) string
    labels: Ints  # (n,)
    embeddings: Floats  # (n, D)


@dataclass(frozen=True, kw_only=True)
class EmbeddingFile:
    path: str
    num_rows: int
    modified: int
    """ns since 1970; 0 if the store keeps no times."""


def opened(path: str) -> pq.ParquetFile:
    try:
        # Buffered: a column of a large row group is read page by page.
        return open_parquet(path, buffer_size=_BUFFER)
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({one_line(error)})") from None


@contextmanager
def reading(path: str) -> Iterator[pq.ParquetFile]:
    """Open a file; Arrow's errors about its content become a DataError that names it."""
    with opened(path) as file:
        try:
            yield file
        except (pa.ArrowException, OSError) as error:
            if "Expected all lists to be of size" in str(error):  # Arrow's error for a null in a fixed-size list
                raise DataError(f"{path}: embedding: some rows have none; every image needs one") from None
            raise DataError(f"{path}: cannot be read as parquet ({one_line(error)})") from None


def kind_of(path: str, file: pq.ParquetFile) -> tuple[int, str]:
    """Return the dimension and type of a file's embeddings; for lists of variable size, those of the first row."""
    kind = file.schema_arrow.field("embedding").type
    dtype = "float16" if pa.types.is_float16(kind.value_type) else "float32"
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size, dtype
    first = next(file.iter_batches(1, columns=["embedding"]))["embedding"][0]
    if not first.is_valid or not len(first):
        raise DataError(f"{path}: embedding: is missing in row 0; every image needs one")
    return len(first), dtype


def read_labels(file: EmbeddingFile) -> Iterator[tuple[pa.Array, Ints]]:
    """Read keys and labels of a file in batches.

    Raises:
        DataError: a key or a label is missing, a label is negative, or the number of rows has changed.
    """
    rows = 0
    with reading(file.path) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=["key", "label"]):
            keys, labels = _keys_and_labels(file.path, batch)
            if len(labels) and labels.min() < 0:
                raise DataError(f"{file.path}: label: {labels.min()}: must not be negative")
            rows += len(labels)
            yield keys, labels
    _refuse_changed(file.path, rows, file.num_rows)


def read_norms(file: EmbeddingFile) -> NDArray[np.float32] | None:
    """Return the lengths of the raw embeddings of a file (n,), None if it has no column `norm`."""
    with reading(file.path) as parquet:
        if "norm" not in parquet.schema_arrow.names:
            return None
        column = parquet.read(columns=["norm"])["norm"].combine_chunks().cast(pa.float32())
        found: NDArray[np.float32] = column.to_numpy(zero_copy_only=False)
    return found


def read_keys(file: EmbeddingFile) -> Iterator[pa.Array]:
    """Read the keys of a file in batches.

    Raises:
        DataError: a key is missing.
    """
    with reading(file.path) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=["key"]):
            yield _complete(file.path, batch, "key").cast(pa.string())


def _keys_and_labels(path: str, batch: pa.RecordBatch) -> tuple[pa.Array, Ints]:
    keys, labels = (_complete(path, batch, name) for name in ("key", "label"))
    return keys.cast(pa.string()), labels.cast(pa.int64()).to_numpy()


def _complete(path: str, batch: pa.RecordBatch, name: str) -> pa.Array:
    column = _decoded(batch[name])
    if column.null_count:
        raise DataError(f"{path}: {name}: some rows have none; every image needs one")
    return column


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _vectors(path: str, keys: pa.Array, lists: pa.Array, size: int, dtype: str) -> Floats:
    """Return the values (n, size) of a column of lists."""
    if lists.null_count:
        row = int(pc.index(pc.is_null(lists), pa.scalar(True)).as_py())
        raise DataError(f"{path}: embedding of {keys[row]}: is missing; every image needs one")
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
        raise DataError(f"{path}: embedding of {keys[row]}: has values that are missing; embed the image again")
    with np.errstate(over="ignore"):  # an overflow of float64 values is reported as infinity
        return values.to_numpy().reshape(-1, size).astype(dtype, copy=False)


def _refuse_changed(path: str, rows: int, expected: int) -> None:
    if rows != expected:
        raise DataError(f"{path}: has {rows} rows where it had {expected}: must not change while it is read: run again")


def read_rows(path: str, start: int, stop: int) -> Rows:
    """Read rows [start, stop) of a parquet file; reads only the row groups that hold them.

    Raises:
        DataError: an embedding is missing, zero, not finite or of another length; its key is named.
    """
    with reading(path) as file:
        size, dtype = kind_of(path, file)
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
    """Yield the rows of a parquet file with wanted keys; reads embeddings only of row groups that hold one."""
    with reading(path) as file:
        size, dtype = kind_of(path, file) if file.metadata.num_rows else (1, "float32")
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


def _check_directions(path: str, keys: pa.Array, embeddings: Floats) -> None:
    # A float32 sum of squares detects all three faults at once; rows that overflow it are checked again.
    wide = embeddings.astype(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", wide, wide)
    for row in np.flatnonzero(~(np.isfinite(squares) & (squares > 0))).tolist():
        values = wide[row]
        if not np.isfinite(values).all():
            raise DataError(f"{path}: embedding of {keys[row]}: has NaN or infinity in it; embed the image again")
        if not values.any():
            raise DataError(f"{path}: embedding of {keys[row]}: is all zeros: embed the image again")
