"""Sample index as numpy columns, read from index.parquet in batches so that nothing is in memory twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.data.classes import Ints
from rayface.data.shards.samples import SampleIndex
from rayface.storage import DataError, one_line
from rayface.storage.parquet import open_parquet

Columns = dict[str, Ints]
"""The columns of a SampleIndex by name, (N,) each; without `source_label` where that is the label."""

SOURCE_LABEL = "source_label"  # of a selection: the label as stored in the shard
_TYPES = {
    SOURCE_LABEL: np.int32,
    "label": np.int32,
    "shard": np.int32,
    "offset": np.int64,
    "num_bytes": np.int32,
}
_Value = TypeVar("_Value", bound=np.generic)
_BATCH = 1 << 16  # rows
_READ_BYTES = 1 << 20  # read per column at once; otherwise pyarrow buffers whole row groups


def read_columns(
    path: str, num_shards: int, num_rows: int | None = None, *, source_label: bool = False
) -> tuple[Columns, NDArray[np.int64]]:
    """Read an index file without its keys.

    Args:
        num_shards: shard numbers must be below it.
        num_rows: number of samples that it must have, None for any.
        source_label: whether it has this column.

    Returns:
        the columns, 20 or 24 bytes a sample, and the number of samples of each shard.

    Raises:
        DataError: not a parquet file with these columns, or an impossible value.
    """
    types = {name: kind for name, kind in _TYPES.items() if source_label or name != SOURCE_LABEL}
    with _opened(path, list(types)) as file:
        if num_rows not in (None, file.metadata.num_rows):
            raise ValueError(f"sample counts differ: {file.metadata.num_rows} rows, the shards have {num_rows}")
        columns: Columns = {name: np.empty(file.metadata.num_rows, kind) for name, kind in types.items()}
        start = 0
        for groups in _row_groups(file):
            for batch in file.iter_batches(_BATCH, row_groups=groups, columns=list(types)):
                rows = slice(start, start := start + len(batch))
                for name, kind in types.items():
                    columns[name][rows] = np.from_dlpack(batch[name].cast(pa.from_numpy_dtype(kind)))  # rejects nulls
        shards = columns["shard"]
        low, high = int(shards.min(initial=0)), int(shards.max(initial=0))
        if low < 0 or high >= num_shards:
            raise ValueError(f"shard: {low if low < 0 else high} is not a number from 0 to {num_shards - 1}")
    return columns, count(shards, num_shards)


def read_keys_at(path: str, rows: Sequence[int]) -> dict[int, str]:
    """Read the keys of a few rows of an index file; each row group is read at most once."""
    keys: dict[int, str] = {}
    with _opened(path, ["key"]) as file:
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.cumsum([0, *groups])
        for group, own in itertools.groupby(sorted(rows), lambda row: int(np.searchsorted(starts, row, "right")) - 1):
            column = pa.chunked_array([batch["key"] for batch in file.iter_batches(_BATCH, [group], ["key"])])
            keys.update({row: column[row - int(starts[group])].as_py() for row in own})
    return keys


def _row_groups(file: pq.ParquetFile) -> Iterator[list[int]]:
    """Combine small row groups, because each read allocates a buffer for every column."""
    gathered: list[int] = []
    num_rows = 0
    for group in range(file.num_row_groups):
        more = file.metadata.row_group(group).num_rows
        if gathered and num_rows + more > _BATCH:
            yield gathered
            gathered, num_rows = [], 0
        gathered.append(group)
        num_rows += more
    if gathered:
        yield gathered


@contextmanager
def _opened(path: str, names: Sequence[str]) -> Iterator[pq.ParquetFile]:
    try:
        with open_parquet(path, buffer_size=_READ_BYTES) as file:
            yield file
    except DataError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a parquet file with columns {', '.join(names)} ({one_line(error)})") from None


def looked_up(table: NDArray[_Value], column: Ints) -> NDArray[_Value]:
    """Return table[column], (N,)."""
    found = np.empty(len(column), table.dtype)
    for rows in _pieces(column):
        found[rows] = table[column[rows]]
    return found


def count(column: Ints, num_values: int) -> NDArray[np.int64]:
    """Return the number of occurrences of each value from 0 to `num_values` - 1."""
    return sum((np.bincount(column[rows], minlength=num_values) for rows in _pieces(column)), np.zeros(num_values, int))


def first_outside(columns: Columns, sizes: Sequence[int]) -> int | None:
    """Return the first row whose bytes are not inside its shard, None if there is none; `sizes` of shards in bytes."""
    ends = np.array(sizes, np.int64)
    for rows in _pieces(columns["shard"]):
        offset, num_bytes = columns["offset"][rows], columns["num_bytes"][rows]
        # offset + num_bytes may overflow.
        wrong = (offset < 0) | (num_bytes <= 0) | (offset > ends[columns["shard"][rows]] - num_bytes)
        if wrong.any():
            return rows.start + int(np.argmax(wrong))
    return None


def _pieces(column: Ints) -> Iterator[slice]:
    """Cut a column into slices, because numpy's intermediates take 8 bytes an element."""
    return (slice(start, start + _BATCH) for start in range(0, len(column), _BATCH))


def keep_rows(columns: Columns, kept: NDArray[np.bool_]) -> None:
    """Drop the samples with `kept` (N,) false, column by column."""
    for name in columns:
        columns[name] = columns[name][kept]


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Return the samples of all parts, in order; several parts are emptied column by column to save memory."""
    if len(parts) == 1:
        return parts[0]
    bounds = np.cumsum([0, *(len(part["shard"]) for part in parts)]).tolist()
    joint: Columns = {}
    for name in _TYPES:  # source_label first, because it may be the label
        if name != SOURCE_LABEL or any(SOURCE_LABEL in part for part in parts):
            joint[name] = np.empty(bounds[-1], _TYPES[name])
            for part, (start, stop) in zip(parts, itertools.pairwise(bounds), strict=True):
                joint[name][start:stop] = part[name if name in part else "label"]
                part.pop(name, None)
    return joint


def to_index(columns: Columns) -> SampleIndex:
    return SampleIndex(**{SOURCE_LABEL: columns["label"], **columns})
