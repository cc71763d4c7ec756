"""Rows of a parquet column in nearly rising order, streamed from row groups of any size."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayface.storage import one_line, open_arrow

_BATCH = 64  # rows
_KEPT = 32  # batches behind the newest one, for threads that read the same rows at about the same time
_BUFFER = 4 << 20
_OPEN = 2  # row groups


class RowReaders:
    """Reads rows of row groups; thread-safe. It is pickled as an empty one.

    Memory: 2,048 rows of two row groups.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: OrderedDict[tuple[str, int], _RowReader] = OrderedDict()

    def __reduce__(self) -> tuple[type[RowReaders], tuple[()]]:
        return RowReaders, ()

    def read(self, path: str, group: int, column: str, rows: Sequence[int]) -> Iterator[bytes | str | None]:
        """Yield the bytes of rows, None for null, or why they cannot be read."""
        with self._lock:
            reader = self._readers.pop((path, group), None) or _RowReader(path, group, column)
            self._readers[path, group] = reader
            if len(self._readers) > _OPEN:
                self._readers.popitem(last=False)[1].close()
        for row in rows:
            yield reader.row(row)

    def close(self) -> None:
        """Close the files."""
        while self._readers:
            self._readers.popitem()[1].close()


class _RowReader:
    """A row group that is read forward; an earlier row than those kept starts over."""

    def __init__(self, path: str, group: int, column: str) -> None:
        self._path, self._group, self._column = path, group, column
        self._lock = threading.Lock()
        self._kept: deque[tuple[int, pa.Array]] = deque(maxlen=_KEPT)  # first row, and the batch
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._next = 0
        self._failed: str | None = None
        self._file: pq.ParquetFile | None = None

    def row(self, row: int) -> bytes | str | None:
        with self._lock:
            if row < self._next and not (self._kept and row >= self._kept[0][0]):
                self._restart()
            while row >= self._next:
                if (failed := self._read_batch()) is not None:
                    return failed
            start, batch = next(found for found in reversed(self._kept) if found[0] <= row)
            return batch[row - start].as_py()

    def close(self) -> None:
        with self._lock:
            self._restart()

    def _restart(self) -> None:
        if self._file:
            self._file.close()
        self._batches, self._file, self._next, self._failed = None, None, 0, None
        self._kept.clear()

    def _read_batch(self) -> str | None:
        """Read the next batch; return why that failed."""
        if self._failed is None:
            try:
                if self._batches is None:
                    self._file = pq.ParquetFile(open_arrow(self._path), buffer_size=_BUFFER, pre_buffer=False)
                    self._batches = self._file.iter_batches(_BATCH, row_groups=[self._group], columns=[self._column])
                column = next(self._batches).column(0)
                if pa.types.is_struct(column.type):
                    column = pc.struct_field(column, "bytes")
                self._kept.append((self._next, column))
                self._next += len(column)
            except (pa.ArrowException, OSError) as error:
                self._failed = f"cannot be read ({one_line(error)})"
            except StopIteration:
                self._failed = "the row group ends before it"
        return self._failed
