"""Parquet files on a disk or in an object store; not imported by the package, as pyarrow.parquet is slow to import."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayface.storage.errors import DataError
from rayface.storage.reads import open_arrow, refuse_extensions
from rayface.storage.remote_path import AnyPath, uri_of

MAX_TEXT = 4096  # bytes of a value: a dictionary repeats a long one for millions of rows
_MAX_TABLE, _MAX_RATIO = 1 << 30, 100  # bytes of a whole table; of a larger file, as a multiple of its size
_READ_BYTES = 1 << 20
_FEW = 64  # rows of a batch whose values repeat the previous one's start


class SerialParquetFile(pq.ParquetFile):
    """A parquet file that is read and decoded in the calling thread.

    Arrow's own threads must not hold a Python file: one that still does when Python ends aborts the process, or waits
    for it forever (apache/arrow#34314, #50482).
    """

    def __init__(self, path: str, stream: pa.NativeFile, max_value: int | None, **options: Any) -> None:
        super().__init__(stream, pre_buffer=False, **options)
        self._path, self._stream, self._max_value = path, stream, max_value
        self._checked: set[tuple[int, int]] = set()  # row group and column

    def iter_batches(
        self, batch_size: int = 65_536, row_groups: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most `batch_size` rows.

        Raises:
            DataError: a value is too long, see `open_parquet`.
        """
        groups = range(self.num_row_groups) if row_groups is None else row_groups
        for number in self._byte_columns(columns) if self._max_value is not None else ():
            for group in groups:
                batch_size = self._safe_rows(group, number, batch_size)
        for batch in super().iter_batches(batch_size, row_groups=groups, columns=columns, use_threads=False):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                self._refuse_long(name, column)
            yield batch

    def read_row_group(self, *args: Any, **options: Any) -> pa.Table:
        return super().read_row_group(*args, use_threads=False, **options)

    def close(self, force: bool = False) -> None:
        super().close(force=True)  # the stream, which was open before

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a table.

        Raises:
            DataError: a value is too long, or a small file has a table of gigabytes.
        """
        tables, size = [super().read_row_groups([], columns=columns, use_threads=False)], 0
        most = max(_MAX_TABLE, _MAX_RATIO * self._stream.size())
        for batch in self.iter_batches(columns=columns):
            size += batch.nbytes
            if size > most:
                raise DataError(f"{self._path}: its table has more than {most:,} bytes, {_MAX_RATIO} times the file's")
            tables.append(pa.Table.from_batches([batch]))
        return pa.concat_tables(tables)

    def _byte_columns(self, columns: Sequence[str] | None) -> Iterator[int]:
        """Yield the numbers of columns of texts or bytes; DataError for one whose values can be of any size."""
        for number in range(len(self.metadata.schema)):
            leaf = self.metadata.schema.column(number)
            is_read = columns is None or any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns)
            if not is_read or "BYTE_ARRAY" not in leaf.physical_type:
                continue
            is_text = leaf.physical_type == "BYTE_ARRAY"  # not of a fixed size, as float16
            if leaf.length > MAX_TEXT or (is_text and leaf.path != leaf.name):
                raise DataError(f"{self._path}: {leaf.path}: must be numbers or texts, not lists or structs of texts")
            if is_text:
                yield number

    def _safe_rows(self, group: int, number: int, rows: int) -> int:
        """Return how many of at most `rows` rows may be decoded at once; DataError if a dictionary has a long value."""
        if "DELTA_BYTE_ARRAY" in self.metadata.row_group(group).column(number).encodings:
            return min(rows, _FEW)  # values are a part of the previous one, and Arrow reads no dictionary of them
        if (group, number) not in self._checked:
            # Any batch of dictionaries has the whole one, before it is repeated for the rows.
            name = self.metadata.schema.column(number).path
            options = {"read_dictionary": [name], "buffer_size": _READ_BYTES, "pre_buffer": False}
            file = pq.ParquetFile(self._stream, metadata=self.metadata, **options)
            for batch in file.iter_batches(1, row_groups=[group], columns=[name], use_threads=False):
                self._refuse_long(name, batch.column(0))
                break
            self._checked.add((group, number))
        return rows

    def _refuse_long(self, name: str, column: pa.Array) -> None:
        texts = column.dictionary if pa.types.is_dictionary(column.type) else column
        if pa.types.is_string_view(texts.type) or pa.types.is_binary_view(texts.type):
            texts = texts.cast(pa.large_binary())
        if self._max_value is None or not _is_bytes(texts.type):
            return
        if (pc.max(pc.binary_length(texts)).as_py() or 0) > self._max_value:
            raise DataError(f"{self._path}: {name}: a value has more than {self._max_value:,} bytes")


def open_parquet(path: str, *, max_value: int | None = MAX_TEXT, **options: Any) -> SerialParquetFile:
    """Open a file; it closes its stream with itself.

    Args:
        max_value: maximum bytes of a text that `iter_batches` and `read` accept; None: any, for images.
        options: those of pq.ParquetFile.

    Raises:
        DataError: it has a column of an extension type; also see `Source`.
        StorageError: see `Source`.
        pa.ArrowException, OSError: it is no parquet file.
    """
    stream = open_arrow(path)
    try:
        file = SerialParquetFile(path, stream, max_value, **options)
        refuse_extensions(path, file.schema_arrow)
        return file
    except BaseException:
        stream.close()
        raise


def read_table(path: AnyPath, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a whole file; errors as of `open_parquet` and `SerialParquetFile.read`."""
    with open_parquet(uri_of(path)) as file:
        return file.read(columns)


def num_rows(path: AnyPath) -> int:
    """Return the number of rows; errors as of `open_parquet`."""
    with open_parquet(uri_of(path)) as file:
        return int(file.metadata.num_rows)


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return any(f(kind) for f in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))
