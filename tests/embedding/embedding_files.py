"""Embeddings of seven images as tables, and parquet files of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEYS = [f"face{k}" for k in range(7)]


LABELS = np.arange(7) // 2


VECTORS = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)


def table(vectors: Any = VECTORS, kind: Any = None, **columns: Any) -> pa.Table:
    kind = kind or pa.float32()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(vectors).ravel(), kind), np.shape(vectors)[1])
    return pa.table({"key": KEYS, "label": LABELS, "embedding": lists, **columns})


def put(folder: Path, *tables: pa.Table) -> Path:
    for number, each in enumerate(tables):
        pq.write_table(each, folder / f"{number}.parquet", row_group_size=3)
    return folder
