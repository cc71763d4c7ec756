"""Embeddings on disk: parquet files with key, label and embedding, ours or anyone's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.curate.identities import Floats, Ints
from rayface.data.storage import DataError, atomic_stream, join, list_files, normalise, one_line, open_arrow

MANIFEST = "embeddings.json"
_PART = b"rayface"  # metadata key of a part of ours
_TYPES = {"fp16": pa.float16(), "fp32": pa.float32()}
_DTYPES = {"halffloat": np.float16, "float": np.float32}
_ROWS = 8192  # decoded at a time
_BUFFER = 2**20
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
    """Look at embeddings without reading them.

    Args:
        path: a parquet file, or a folder of them (local or URI): `key` string, `label` integer, `embedding` fixed-size
            list of float16 or float32.

    Raises:
        DataError: one line; a missing column, another type, files of different dimension, no rows.
    """
    root = normalise(path)
    paths = _paths(root)
    if not paths:
        raise DataError(f"{root}: no parquet files in this folder; give what `rayface embed` wrote")
    files, kinds = [], []
    for each, modified in paths.items():
        with _opened(each) as file:
            kinds.append(_kind(each, file.schema_arrow))
            files.append(EmbeddingFile(path=each, num_rows=file.metadata.num_rows, modified=modified))
    first = files[0].path
    for each, kind in zip(paths, kinds, strict=True):
        if kind != kinds[0]:
            raise DataError(
                f"{each}: embedding: is {kind[1]} of length {kind[0]}, in {first} it is {kinds[0][1]} of length "
                f"{kinds[0][0]}; all files must come from one model"
            )
    size, dtype = kinds[0]
    found = Embeddings(files=tuple(files), size=size, dtype=dtype)
    if found.num_rows == 0:
        raise DataError(f"{root}: has no rows; there is nothing to choose from")
    return found


JOB = "job.json"  # what is being embedded, beside parts that are not all there yet


def _paths(root: str) -> dict[str, int]:
    """The parquet files of a folder, or the one that is named, and when each was written."""
    if root.partition("?")[0].endswith(".parquet"):
        folder, _, wanted = root.partition("?")[0].rpartition("/")
        return {root: next((file.mtime_ns for file in list_files(folder) if file.name == wanted), 0)}
    files = list_files(root, "folder of embeddings")
    names = [file.name for file in files]
    if JOB in names and MANIFEST not in names:
        raise DataError(f"{root}: the embeddings were never finished; run the command that writes them again")
    return {
        join(root, file.name): file.mtime_ns
        for file in files
        if file.name.endswith(".parquet") and not file.name.startswith(".")
    }


def _opened(path: str) -> pq.ParquetFile:
    try:
        # Buffered: a column of a large row group is read page by page.
        return pq.ParquetFile(open_arrow(path), buffer_size=_BUFFER)
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({one_line(error)})") from None


def _kind(path: str, schema: pa.Schema) -> tuple[int, str]:
    for name in ("key", "label", "embedding"):
        if name not in schema.names:
            raise DataError(f"{path}: has no column {name}; embeddings need key, label and embedding")
    key, label, embedding = (schema.field(name).type for name in ("key", "label", "embedding"))
    if not (pa.types.is_string(key) or pa.types.is_large_string(key)):
        raise DataError(f"{path}: key: is {key}, must be string")
    if not pa.types.is_integer(label):
        raise DataError(f"{path}: label: is {label}, must be int64")
    if not pa.types.is_fixed_size_list(embedding) or str(embedding.value_type) not in _DTYPES:
        raise DataError(f"{path}: embedding: is {embedding}, must be a fixed-size list of float16 or float32")
    return embedding.list_size, np.dtype(_DTYPES[str(embedding.value_type)]).name


def read_labels(file: EmbeddingFile) -> Iterator[tuple[pa.Array, Ints]]:
    """Read keys and labels of a file, some rows at a time.

    Raises:
        DataError: a key or a label is missing, or a label is negative.
    """
    with _opened(file.path) as parquet:
        for batch in parquet.iter_batches(_ROWS, columns=["key", "label"]):
            for name in ("key", "label"):
                if batch[name].null_count:
                    raise DataError(f"{file.path}: {name}: some rows have none; every face needs one")
            labels = batch["label"].to_numpy().astype(np.int64)
            if len(labels) and labels.min() < 0:
                raise DataError(f"{file.path}: label: {labels.min()}: must not be negative")
            yield batch["key"].cast(pa.string()), labels


def read_rows(path: str, start: int, stop: int) -> Rows:
    """Read rows [start, stop) of a parquet file, only the row groups that hold them, or of an Arrow file.

    Raises:
        DataError: an embedding is missing, zero, or not finite; its key is named.
    """
    if path.endswith(".arrow"):
        with pa.memory_map(path) as mapped:
            batch = pa.ipc.open_file(mapped).get_batch(0).slice(start, stop - start)
            # Copied, so that the map can go: the kernel maps much more of a file than the rows that are looked at.
            table = pa.Table.from_batches([batch]).take(pa.array(np.arange(len(batch))))
            del batch
    else:
        table = _parquet_rows(path, start, stop)
    keys, labels, lists = (table[name].chunk(0) for name in ("key", "label", "embedding"))
    size = lists.type.list_size
    if lists.null_count or lists.flatten().null_count:
        raise DataError(f"{path}: embedding: rows {start} to {stop - 1} have empty ones; every face needs one")
    embeddings = lists.flatten().to_numpy().reshape(-1, size)
    _check_directions(path, keys, embeddings)
    return Rows(keys.cast(pa.string()), labels.to_numpy().astype(np.int64), embeddings)


def _parquet_rows(path: str, start: int, stop: int) -> pa.Table:
    with _opened(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        at = int(ends[first]) - sizes[first]
        found = []
        groups = list(range(first, last + 1))
        for batch in file.iter_batches(_ROWS, row_groups=groups, columns=["key", "label", "embedding"]):
            part = batch.slice(max(0, start - at), max(0, min(stop - at, len(batch)) - max(0, start - at)))
            found += [part] if len(part) else []
            at += len(batch)
            if at >= stop:
                break
    return pa.Table.from_batches(found).combine_chunks()


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
        writer.add_key_value_metadata({_PART: json.dumps(note).encode()})
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
