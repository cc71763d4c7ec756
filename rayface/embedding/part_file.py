"""A parquet file of embeddings; `rayface embed` writes one per shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from rayface.arrays import Floats, Ints
from rayface.credentials import masked
from rayface.embedding.rows import opened
from rayface.storage import DataError, atomic_stream

_PART = b"rayface"  # metadata key of our parts
_TYPES = {"fp16": pa.float16(), "fp32": pa.float32()}
Dtype = Literal["fp16", "fp32"]


Batch = tuple[list[str], Ints, Floats] | tuple[list[str], Ints, Floats, Floats]


def write_part(
    path: str,
    batches: Iterable[Batch],
    *,
    size: int,
    dtype: Dtype,
    note: Mapping[str, object],
    norms: bool = False,
) -> int:
    """Write a parquet file of embeddings atomically; return its number of rows.

    Args:
        batches: (keys, labels (n,), embeddings (n, D)), with `norms` also the norms (n,); each becomes a row group.
        note: stored in the file's metadata for `part_note`; read after the last batch.
        norms: write the column `norm`, float32: the lengths of the raw embeddings.
    """
    kind = _TYPES[dtype]
    schema = pa.schema({"key": pa.string(), "label": pa.int64(), "embedding": pa.list_(kind, size)})
    if norms:
        schema = schema.append(pa.field("norm", pa.float32()))
    num_rows = 0
    with (
        atomic_stream(path) as stream,
        pq.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as writer,
    ):
        for keys, labels, embeddings, *lengths in batches:
            values = pa.array(embeddings.astype(kind.to_pandas_dtype()).ravel(), kind)
            lists = pa.FixedSizeListArray.from_arrays(values, size)
            own = [pa.array(each, pa.float32()) for each in lengths]
            writer.write_table(pa.table([pa.array(keys, pa.string()), pa.array(labels), lists, *own], schema=schema))
            num_rows += len(keys)
        writer.add_key_value_metadata({_PART: json.dumps(masked(note)).encode()})
    return num_rows


def part_note(path: str) -> tuple[int, Mapping[str, Any]]:
    """Return the rows of a part that `write_part` wrote, and its note.

    Raises:
        DataError: it is not such a file.
    """
    with opened(path) as file:
        metadata = file.metadata
        note = (metadata.metadata or {}).get(_PART)
        if note is None:
            raise DataError(f"{path}: was not written by rayface; give another folder")
        return metadata.num_rows, json.loads(note)
