"""Path in an object store, with the methods of pathlib.Path that a run's files need."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import total_ordering
from pathlib import Path
from typing import Literal

from pyarrow import fs as pafs

from rayface.credentials import mask, openable, recall
from rayface.storage.errors import DataError, retried
from rayface.storage.paths import is_local, join, list_entries, locate, normalise, split
from rayface.storage.reads import open_binary
from rayface.storage.writes import is_temporary, write_bytes


@dataclass(frozen=True)
class RemoteStat:
    """Size in bytes and time of the last change in Unix seconds of an object, as `os.stat_result` names them."""

    st_size: int
    st_mtime: float


@total_ordering
class RemotePath:
    """Path of an object or folder. Its text has no credentials; this process can still open it.

    Objects appear complete or not at all. Transient errors are retried; `DataError` and `StorageError` are raised as
    `retried` says, FileNotFoundError where pathlib raises it.
    """

    def __init__(self, uri: str) -> None:
        uri = recall(uri)
        openable(uri)  # remembers the credentials of its location, with which the masked text is opened
        base, question, query = uri.partition("?")
        self._uri = f"{base.rstrip('/')}{question}{query}"

    def __str__(self) -> str:
        return mask(self._uri)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    @property
    def uri(self) -> str:
        """The URI to open it by, with credentials; not to be shown or stored."""
        return self._uri

    def __reduce__(self) -> tuple[type[RemotePath], tuple[str]]:
        return RemotePath, (self._uri,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(join(self._uri, name))

    @property
    def name(self) -> str:
        """The last part."""
        return split(self._uri)[1]

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in."""
        return RemotePath(split(self._uri)[0])

    def absolute(self) -> RemotePath:
        """Return the path itself."""
        return self

    def with_name(self, name: str) -> RemotePath:
        """Return the path of another name in the same folder."""
        return self.parent / name

    def exists(self) -> bool:
        """Return whether there is an object, or a folder with objects."""
        return self._info().type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        """Return whether there is an object."""
        return self._info().type == pafs.FileType.File

    def is_dir(self) -> bool:
        """Return whether there is a folder with objects."""
        return self._info().type == pafs.FileType.Directory

    def stat(self) -> RemoteStat:
        """Return size and time of an object."""
        info = self._info()
        if info.type != pafs.FileType.File:
            raise self._missing()
        return RemoteStat(info.size, (info.mtime_ns or 0) / 1e9)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder exists where objects are in it."""

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what is directly in a folder, without unfinished files; nothing if there is none."""
        if self.is_dir():
            files, folders = list_entries(self._uri)
            names = [file.name for file in files if not is_temporary(file.name)]
            yield from (self / name for name in names + folders)

    def files(self) -> dict[str, RemoteStat]:
        """Return the objects in a folder and its sub-folders by name relative to it, sorted; {} if there is none.

        Files that are being written, or that a killed process left, are not among them, nor are objects whose name is
        no path below the folder: stores take any text, such as a/../b.
        """
        filesystem, inside = locate(self._uri)
        selector = pafs.FileSelector(inside, allow_not_found=True, recursive=True)
        found = retried(self._uri, lambda: filesystem.get_file_info(selector), "cannot be listed")
        start = len(inside.rstrip("/")) + 1
        files = (info for info in found if info.type == pafs.FileType.File and not is_temporary(info.base_name))
        objects = sorted(files, key=lambda info: info.path)
        named = {info.path[start:]: RemoteStat(info.size, (info.mtime_ns or 0) / 1e9) for info in objects}
        return {name: stat for name, stat in named.items() if not {"", ".", ".."} & set(name.split("/"))}

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """Open an object for reading."""
        try:
            return open_binary(self._uri)
        except DataError:
            if self.exists():
                raise
            raise self._missing() from None

    def read_bytes(self) -> bytes:
        """Return the content of a small object."""
        filesystem, inside = locate(self._uri)

        def read() -> bytes | None:
            try:
                with filesystem.open_input_stream(inside) as stream:
                    content: bytes = stream.read()
            except FileNotFoundError:
                return None
            return content

        content = retried(self._uri, read)
        if content is None:
            raise self._missing()
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the text of a small object."""
        return self.read_bytes().decode(encoding)

    def upload(self, content: bytes | memoryview) -> None:
        """Write an object by one upload."""
        write_bytes(self._uri, content)

    def touch(self) -> None:
        """Create an object."""
        self.upload(b"1")

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object."""
        filesystem, inside = locate(self._uri)

        def delete() -> bool:
            try:
                filesystem.delete_file(inside)
            except FileNotFoundError:
                return False
            return True

        if not retried(self._uri, delete, "cannot be deleted") and not missing_ok:
            raise self._missing()

    def remove_tree(self) -> None:
        """Delete a folder with all of its objects, if there is one."""
        filesystem, inside = locate(self._uri)
        if self.is_dir():
            retried(self._uri, lambda: filesystem.delete_dir(inside), "cannot be deleted")

    def _info(self) -> pafs.FileInfo:
        filesystem, inside = locate(self._uri)
        return retried(self._uri, lambda: filesystem.get_file_info(inside))

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(errno.ENOENT, "No such object", str(self))


AnyPath = Path | RemotePath


def path_of(path: str | Path | RemotePath) -> AnyPath:
    """Return a path on a disk, or in an object store for a URI; file:// is a disk."""
    if isinstance(path, RemotePath):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(normalise(text))
    return Path(text) if is_local(text) else RemotePath(text)


def uri_of(path: AnyPath) -> str:
    """Return the text to open a path by: of a URI with its credentials, not to be shown or stored."""
    return path.uri if isinstance(path, RemotePath) else str(path)
