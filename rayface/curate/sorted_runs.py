"""Sorted runs: files of rows sorted by label, from which a reader memory-maps a range of labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayface.curate.work_files import WorkPath
from rayface.embedding.rows import Rows
from rayface.storage.reads import refuse_extensions

Range = tuple[str, int, int]
"""Rows [start, stop) of a parquet file."""


@dataclass(frozen=True, kw_only=True)
class SortedRuns:
    """Files of rows sorted by label."""

    folder: WorkPath
    count: int

    def path(self, number: int) -> WorkPath:
        return self.folder / f"sorted-{number:06d}.arrow"


def sort_rows(parts: list[Rows]) -> Rows:
    """Return all rows by label, then by key; each part is freed once it is copied."""
    labels = np.concatenate([part.labels for part in parts])
    keys = pa.concat_arrays([part.keys for part in parts])
    order = pc.sort_indices(pa.table({"label": labels, "key": keys}), [("label", "ascending"), ("key", "ascending")])
    places = order.to_numpy()
    embeddings = np.empty((len(labels), parts[0].embeddings.shape[1]), parts[0].embeddings.dtype)
    row_of = np.argsort(places)
    while parts:
        part = parts.pop()
        first = len(row_of) - len(part.labels)
        embeddings[row_of[first:]] = part.embeddings
        row_of = row_of[:first]
    return Rows(keys.take(order), labels[places], embeddings)


def write_run(path: WorkPath, rows: Rows) -> None:
    """Write rows that are sorted by label as an uncompressed Arrow file, which `read_run` memory-maps."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.embeddings.ravel()), rows.embeddings.shape[1])
    batch = pa.record_batch([rows.keys, pa.array(rows.labels), lists], names=["key", "label", "embedding"])
    with path.writing() as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


def read_run(path: Path, first: int, last: int) -> Rows:
    """Read the rows of a sorted run whose labels are from `first` to `last`."""
    with pa.memory_map(str(path)) as mapped:
        file = pa.ipc.open_file(mapped)
        refuse_extensions(str(path), file.schema)
        batch = file.get_batch(0)
        start, stop = np.searchsorted(batch["label"].to_numpy(), [first, last + 1]).tolist()
        # Copy, to release the map: the kernel maps much more of a file than the accessed rows.
        table = batch.slice(start, stop - start).take(pa.array(np.arange(stop - start)))
        del batch
    lists = table["embedding"]
    return Rows(table["key"], table["label"].to_numpy(), lists.flatten().to_numpy().reshape(-1, lists.type.list_size))
