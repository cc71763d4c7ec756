"""Rows of a parquet column in nearly rising order, streamed from row groups of any size."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayface.storage import one_line
from rayface.storage.parquet import open_parquet

_BATCH = 64  # rows
_BATCH_BYTES = 64 << 20  # of a batch, for images of which one has the mean size of the column
_KEPT = 32  # batches behind the newest one, for threads that read the same rows at about the same time
_KEPT_BYTES = 256 << 20  # of them, the newest one apart
_SMALLEST = 128  # bytes of a stored image; if the mean is smaller, a dictionary repeats images
_BUFFER = 4 << 20
_OPEN = 2  # row groups


class RowReaders:
    """Reads rows of row groups, for one task; thread-safe. It is pickled as an empty one.

    Memory: 2,048 rows of two row groups, at most 256 MiB of each. Values of a dictionary are kept once, however many
    rows have them: a small file can hold terabytes of equal images.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: OrderedDict[tuple[str, int], _RowReader] = OrderedDict()

    def __reduce__(self) -> tuple[type[RowReaders], tuple[()]]:
        return RowReaders, ()

    def read(self, path: str, group: int, column: str, rows: Sequence[int]) -> list[bytes | str | None]:
        """Return the bytes of rows, None for null, or why they cannot be read."""
        with self._lock:
            reader = self._readers.pop((path, group), None) or _RowReader(path, group, column)
            self._readers[path, group] = reader
            if len(self._readers) > _OPEN:
                self._readers.popitem(last=False)[1].close()
        return reader.rows(rows)

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

    def rows(self, rows: Sequence[int]) -> list[bytes | str | None]:
        # One lock for all: threads that alternate row by row would start over for each other's rows.
        with self._lock:
            return [self._row(row) for row in rows]

    def close(self) -> None:
        with self._lock:
            self._restart()

    def _row(self, row: int) -> bytes | str | None:
        if row < self._next and not (self._kept and row >= self._kept[0][0]):
            self._restart()
        while row >= self._next:
            if (failed := self._read_batch()) is not None:
                return failed
        start, batch = next(found for found in reversed(self._kept) if found[0] <= row)
        return batch[row - start].as_py()

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
                    self._batches = self._opened()
                column = next(self._batches).column(0)
                if pa.types.is_struct(column.type):
                    column = pc.struct_field(column, "bytes")
                while sum(batch.nbytes for _, batch in self._kept) > _KEPT_BYTES:
                    self._kept.popleft()
                self._kept.append((self._next, column))
                self._next += len(column)
            except (pa.ArrowException, OSError) as error:
                self._failed = f"cannot be read ({one_line(error)})"
            except StopIteration:
                self._failed = "the row group ends before it"
        return self._failed

    def _opened(self) -> Iterator[pa.RecordBatch]:
        """Open the file and return the batches of its row group."""
        self._file = open_parquet(self._path, max_value=None, buffer_size=_BUFFER)
        mean = mean_bytes(self._file, self._group, self._column)
        if mean < _SMALLEST:
            self._file.close()
            self._file = open_parquet(self._path, max_value=None, buffer_size=_BUFFER, read_dictionary=[self._column])
        rows = max(1, min(_BATCH, int(_BATCH_BYTES / max(1.0, mean))))
        return self._file.iter_batches(rows, row_groups=[self._group], columns=[self._column])


def mean_bytes(file: pq.ParquetFile, group: int, column: str) -> float:
    """Return the mean size of a value of a column in a row group; one that a dictionary repeats is counted once."""
    chunks = [file.metadata.row_group(group).column(number) for number in range(file.metadata.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
    return float(size) / max(1, file.metadata.row_group(group).num_rows)
