"""Parquet files on a disk or in an object store; not imported by the package, as pyarrow.parquet is slow to import."""

import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayface.storage.errors import DataError
from rayface.storage.reads import open_arrow, refuse_extensions
from rayface.storage.remote_path import AnyPath, uri_of

MAX_TEXT = 4096  # bytes of a value: a dictionary repeats a long one for millions of rows
_MAX_TABLE, _MAX_RATIO = 1 << 30, 100  # bytes of a whole table; of a larger file, as a multiple of its size
_READ_BYTES = 1 << 20
_NO_DICTIONARY = {"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"}  # encodings that Arrow cannot read as one
_LARGE_CHUNK = 1 << 20  # bytes of a column's texts in a row group, on average: a dictionary is usually no larger
_FEW = 1024  # rows of texts that are not read as dictionaries: at most 1 GiB for pages of 1 MiB, the usual size


class SerialParquetFile(pq.ParquetFile):
    """A parquet file that is read and decoded in the calling thread.

    Arrow's own threads must not hold a Python file: one that still does when Python ends aborts the process, or waits
    for it forever (apache/arrow#34314, #50482).
    """

    def __init__(self, path: str, stream: pa.NativeFile, max_value: int | None, **options: object) -> None:
        super().__init__(stream, pre_buffer=False, **options)
        self._path, self._stream, self._max_value, self._options = path, stream, max_value, options

    def iter_batches(
        self, batch_size: int = 65_536, row_groups: Sequence[int] | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most `batch_size` rows.

        Raises:
            DataError: a value is too long, see `open_parquet`, or a column is of an extension type.
        """
        schema = self._schema_of(columns)
        groups = list(range(self.num_row_groups) if row_groups is None else row_groups)
        if self._max_value is None:
            yield from super().iter_batches(batch_size, row_groups=groups, columns=columns, use_threads=False)
            return
        byte_columns = list(self._byte_columns(columns))
        names = [name for number, name in byte_columns if self._has_dictionaries(groups, number)]
        options = {**self._options, "pre_buffer": False, "read_dictionary": names}
        # As dictionaries: a long value is seen once, before it is repeated for the rows.
        file = pq.ParquetFile(self._stream, metadata=self.metadata, **options)
        others = {field.name for field in file.schema_arrow if not pa.types.is_dictionary(field.type)}
        if not others.isdisjoint(name for _, name in byte_columns):
            batch_size = min(batch_size, _FEW)
        if any(self._num_bytes(groups, number) > len(groups) * _LARGE_CHUNK for number, _ in byte_columns):
            # Many texts: Arrow would build a dictionary of them all, ten times as slow and with six times the memory.
            self._check_dictionaries(groups, names, schema, options)
            file = super()
        for batch in file.iter_batches(batch_size, row_groups=groups, columns=columns, use_threads=False):
            yield pa.RecordBatch.from_arrays([*map(self._checked, schema, batch.columns)], schema=schema)

    def _check_dictionaries(
        self, groups: Sequence[int], names: Sequence[str], schema: pa.Schema, options: dict[str, object]
    ) -> None:
        """Read the dictionaries alone, by one row of each; DataError if a value is too long."""
        file = pq.ParquetFile(self._stream, metadata=self.metadata, **{**options, "buffer_size": _READ_BYTES})
        for group, name in itertools.product(groups, names):
            for batch in itertools.islice(file.iter_batches(1, row_groups=[group], columns=[name]), 1):
                self._checked(schema.field(name), batch.column(0))

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a row group; DataError if a column is of an extension type."""
        self._schema_of(columns)
        return super().read_row_group(group, columns=columns, use_threads=False)

    def close(self, force: bool = False) -> None:
        super().close(force=True)  # the stream, which was open before

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a table.

        Raises:
            DataError: as of `iter_batches`, or a small file has a table of gigabytes.
        """
        tables, size = [self._schema_of(columns).empty_table()], 0
        most = max(_MAX_TABLE, _MAX_RATIO * self._stream.size())
        for batch in self.iter_batches(columns=columns):
            size += batch.nbytes
            if size > most:
                raise DataError(f"{self._path}: its table has more than {most:,} bytes, {_MAX_RATIO} times the file's")
            tables.append(pa.Table.from_batches([batch]))
        pa.default_memory_pool().release_unused()  # what the pages took, which the allocator would keep
        return pa.concat_tables(tables)

    def _schema_of(self, columns: Sequence[str] | None) -> pa.Schema:
        """Return the schema of the columns that are read; DataError if one is of an extension type."""
        read = [
            field
            for field in self.schema_arrow
            if columns is None or any(_is_within(field.name, name) or _is_within(name, field.name) for name in columns)
        ]
        refuse_extensions(self._path, read)
        return super().read_row_groups([], columns=columns, use_threads=False).schema

    def _byte_columns(self, columns: Sequence[str] | None) -> Iterator[tuple[int, str]]:
        """Yield number and name of columns of texts or bytes; DataError for one whose values can be of any size."""
        for number in range(len(self.metadata.schema)):
            leaf = self.metadata.schema.column(number)
            is_read = columns is None or any(_is_within(leaf.path, name) for name in columns)
            if not is_read or "BYTE_ARRAY" not in leaf.physical_type:
                continue
            is_text = leaf.physical_type == "BYTE_ARRAY"  # not of a fixed size, as float16
            if leaf.length > MAX_TEXT or (is_text and leaf.path != leaf.name):
                raise DataError(f"{self._path}: {leaf.path}: must be numbers or texts, not lists or structs of texts")
            if is_text:
                yield number, leaf.path

    def _has_dictionaries(self, groups: Sequence[int], number: int) -> bool:
        """Return whether Arrow can read a column as dictionaries, and need not build them of other texts."""
        codings = [self.metadata.row_group(group).column(number).encodings for group in groups]
        return all(
            any("DICTIONARY" in code for code in names) and not _NO_DICTIONARY.intersection(names) for names in codings
        )

    def _num_bytes(self, groups: Sequence[int], number: int) -> int:
        return sum(self.metadata.row_group(group).column(number).total_uncompressed_size for group in groups)

    def _checked(self, field: pa.Field, column: pa.Array) -> pa.Array:
        """Return a column of a batch in the type of the schema; DataError if a value is too long."""
        assert self._max_value is not None, "values of any size are not checked"
        texts = _storage(column)
        if is_dictionary := pa.types.is_dictionary(texts.type):
            texts = _storage(texts.dictionary)
        if pa.types.is_string_view(texts.type) or pa.types.is_binary_view(texts.type):
            texts = texts.cast(pa.large_binary())
        if _is_bytes(texts.type) and (pc.max(pc.binary_length(texts)).as_py() or 0) > self._max_value:
            raise DataError(f"{self._path}: {field.name}: a value has more than {self._max_value:,} bytes")
        if column.type == field.type:
            return column
        return (column.dictionary_decode() if is_dictionary else column).cast(field.type)


def open_parquet(path: str, *, max_value: int | None = MAX_TEXT, **options: object) -> SerialParquetFile:
    """Open a file; it closes its stream with itself.

    Args:
        max_value: maximum bytes of a text that `iter_batches` and `read` accept; None: any, for images.
        options: those of pq.ParquetFile.

    Raises:
        DataError, StorageError: see `Source`.
        pa.ArrowException, OSError: it is no parquet file.
    """
    stream = open_arrow(path)
    try:
        return SerialParquetFile(path, stream, max_value, **options)
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


def _is_within(path: str, outer: str) -> bool:
    """Return whether a dotted path is `outer` or a part of it."""
    return path == outer or path.startswith(f"{outer}.")


def _storage(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return any(f(kind) for f in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary))
