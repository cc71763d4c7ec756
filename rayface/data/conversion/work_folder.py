"""Files of a conversion between its tasks: listings, pieces, and records of finished work."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import pyarrow as pa

from rayface.storage import DataError, atomic_stream, is_local, join, locate, make_folder, read_bytes
from rayface.storage.reads import refuse_extensions

NAME = ".convert"  # below the dataset's folder
_NOTE = b"rayface"


@dataclass(frozen=True, kw_only=True)
class WorkFolder:
    """Folder of a job's own files below the dataset's folder `out`, on a disk that all nodes share, or a URI."""

    out: str

    @property
    def root(self) -> str:
        return join(self.out, NAME)

    def create(self) -> None:
        make_folder(self.root)

    def delete(self) -> None:
        """Delete the folder; DataError if that fails."""
        filesystem, inside = locate(self.root)
        try:
            filesystem.delete_dir(inside)
        except FileNotFoundError:
            pass
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.root}: cannot be deleted ({error})") from None

    def of_source(self, source: int) -> str:
        """Return the path of a source's folder for its own temporary files."""
        return join(self.root, f"source-{source:03d}")

    def listing(self, source: int, part: int) -> str:
        """Return the path of the listing of a source's part: its columns, and its faults in the note."""
        return join(self.root, f"listing-{source:03d}-{part:06d}.arrow")

    def unit(self, number: int) -> str:
        """Return the path of the keys and labels of a unit's images."""
        return join(self.root, f"unit-{number:06d}.arrow")

    def spilled(self, number: int) -> str:
        """Return the path of the record of a unit that was read: the rows of its pieces, faults in the note."""
        return join(self.root, f"spilled-{number:06d}.arrow")

    def piece(self, unit: int, number: int) -> str:
        return join(self.root, f"piece-{unit:06d}-{number:03d}")

    def shard(self, number: int) -> str:
        """Return the path of the record of a written shard: its rows of the index, size and digest in the note."""
        return join(self.root, f"shard-{number:06d}.arrow")


def write_table(path: str, table: pa.Table, note: Mapping[str, object]) -> None:
    """Write an Arrow file atomically, with a note of JSON types."""
    table = table.replace_schema_metadata({_NOTE: json.dumps(note)})
    with atomic_stream(path) as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


def read_table(path: str) -> pa.Table:
    """Read an Arrow file; a local one is memory-mapped.

    Raises:
        DataError: it is missing or corrupt.
    """
    try:
        with pa.memory_map(path) if is_local(path) else pa.BufferReader(read_bytes(path)) as stream:
            file = pa.ipc.open_file(stream)
            refuse_extensions(path, file.schema)
            return file.read_all()
    except FileNotFoundError:
        rule = "the output must be in a folder that all nodes share, or a URI"
        raise DataError(f"{path}: was written by a task and is missing: {rule}") from None
    except pa.ArrowException as error:
        raise DataError(f"{path}: is corrupt ({error}): delete the output folder and run again") from None


def note_of(table: pa.Table) -> dict[str, Any]:
    """Return the note of a table."""
    return json.loads(table.schema.metadata[_NOTE])


class StoredColumns(Sequence[pa.ChunkedArray]):
    """A column of several tables, each read when it is accessed."""

    def __init__(self, paths: Sequence[str], column: str) -> None:
        self._paths, self._column = paths, column

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, number: int) -> pa.ChunkedArray: ...
    @overload
    def __getitem__(self, number: slice) -> StoredColumns: ...
    def __getitem__(self, number: int | slice) -> pa.ChunkedArray | StoredColumns:
        if isinstance(number, slice):
            return StoredColumns(self._paths[number], self._column)
        return read_table(self._paths[number])[self._column]

    def __iter__(self) -> Iterator[pa.ChunkedArray]:
        return (read_table(path)[self._column] for path in self._paths)
