"""Matrix in several .npy files, from which only requested rows are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.curate.work_files import WorkPath, local_paths


@dataclass(frozen=True)
class StackedRows:
    """Row-wise concatenation of .npy files (rows, D) of one dtype; small enough to send to tasks.

    Indexing with a slice or an array of rows reads them into memory. No file stays open.
    """

    paths: tuple[WorkPath, ...]
    ends: Ints  # (files,), row after the last one of each file
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.ends[-1]) if len(self.ends) else 0), self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Ints) -> Floats:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            return self._read(start, max(start, stop))
        files = np.searchsorted(self.ends, rows, side="right")
        found: Floats | None = None
        numbers = np.unique(files).tolist()
        for number, path in zip(numbers, local_paths([self.paths[number] for number in numbers]), strict=True):
            asked = np.flatnonzero(files == number)
            values = np.load(path, mmap_mode="r")
            if found is None:
                found = np.empty((len(rows), self.size), values.dtype)
            found[asked] = values[rows[asked] - (self.ends[number - 1] if number else 0)]
        return np.empty((0, self.size), np.float32) if found is None else found

    def _read(self, start: int, stop: int) -> Floats:
        parts = []
        first = int(np.searchsorted(self.ends, start, side="right"))
        for number in range(first, len(self.paths)):
            begin = int(self.ends[number - 1]) if number else 0
            if begin >= stop:
                break
            values = np.load(self.paths[number].local(), mmap_mode="r")
            parts.append(np.array(values[max(0, start - begin) : stop - begin]))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.size), np.float32)


def stack(paths: Sequence[WorkPath]) -> StackedRows:
    """Open .npy files of one width without reading their rows."""
    shapes = [np.load(path, mmap_mode="r").shape for path in local_paths(paths)]
    ends = np.cumsum([shape[0] for shape in shapes], dtype=np.int64)
    return StackedRows(tuple(paths), ends, shapes[0][1] if shapes else 0)


def write_rows(path: WorkPath, values: NDArray[np.generic]) -> None:
    """Write one of the files atomically."""
    with path.writing() as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(values), allow_pickle=False)
