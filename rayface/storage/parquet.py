"""Parquet files on a disk or in an object store; not imported by the package, as pyarrow.parquet is slow to import."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayface.storage.reads import open_arrow


class SerialParquetFile(pq.ParquetFile):
    """A parquet file that is read and decoded in the calling thread.

    Arrow's own threads must not hold a Python file: one that still does when Python ends aborts the process, or waits
    for it forever (apache/arrow#34314, #50482).
    """

    def iter_batches(self, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        return super().iter_batches(*args, use_threads=False, **options)

    def read_row_group(self, *args: Any, **options: Any) -> pa.Table:
        return super().read_row_group(*args, use_threads=False, **options)

    def close(self, force: bool = False) -> None:
        super().close(force=True)  # the stream, which was open before

    def read(self, *args: Any, **options: Any) -> pa.Table:
        return super().read(*args, use_threads=False, **options)


def open_parquet(path: str, **options: Any) -> SerialParquetFile:
    """Open a file; it closes its stream with itself.

    Args:
        options: those of pq.ParquetFile.

    Raises:
        DataError, StorageError: see `Source`.
        pa.ArrowException, OSError: it is no parquet file.
    """
    stream = open_arrow(path)
    try:
        return SerialParquetFile(stream, pre_buffer=False, **options)
    except BaseException:
        stream.close()
        raise
