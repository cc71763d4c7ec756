"""Rows of core_set.parquet: the decision about every image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayface.arrays import Ints
from rayface.curate.identities import Selection
from rayface.storage import atomic_stream

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "label": pa.int64(),
        "kept": pa.bool_(),
        "score": pa.float32(),
        "suppressed_by": pa.string(),
        "reason": pa.string(),
    }
)


def selected_rows(keys: pa.Array, labels: Ints, selection: Selection, reason: str) -> pa.Table:
    """Return the rows (n) of images after selection; `reason` is that of the images not kept."""
    by = pa.array(np.maximum(selection.suppressed_by, 0), mask=selection.suppressed_by < 0)
    columns = [
        keys,
        pa.array(labels),
        pa.array(selection.kept),
        pa.array(selection.score),
        keys.take(by),
        pa.array(np.where(selection.kept, "kept", reason), pa.string()),
    ]
    return pa.table(columns, schema=SCHEMA)


def dropped_rows(keys: pa.Array, labels: pa.Array, reasons: pa.Array) -> pa.Table:
    """Return the rows (n) of images that cleaning dropped."""
    none, zeros = pa.nulls(len(keys), pa.string()), np.zeros(len(keys), np.float32)
    return pa.table([keys, labels, zeros > 0, zeros, none, reasons], schema=SCHEMA)


def write_rows(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of SCHEMA, a row group each, as one file."""
    with atomic_stream(str(path)) as stream, pq.ParquetWriter(stream, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
