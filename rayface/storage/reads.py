"""Random access to files on a local disk or an object store."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import pyarrow as pa

from rayface.storage.errors import DataError, retried
from rayface.storage.paths import is_local, locate

_BUFFER = 1 << 20  # of a sequential stream
_WINDOW = 8 << 20  # one read of an object store


class Source:
    """Random access to one file; thread-safe; a context manager.

    Transient errors are retried; see `retried` for what is raised if they persist.
    """

    def __init__(self, path: str):
        self.path = path
        self._file: pa.NativeFile | None = None
        self._fd = -1
        retried(path, self._open)

    def _open(self) -> None:
        """Open the file, or open it again to replace a failing handle."""
        if not is_local(self.path):
            filesystem, inside = locate(self.path)
            self._file = filesystem.open_input_file(inside)
            if self._file.size() == 0:  # so reads an answer that was cut before it named a length: ask again
                self._file = filesystem.open_input_file(inside)
            return
        fd = os.open(self.path, os.O_RDONLY)
        if self._fd < 0:
            self._fd = fd
            return
        os.dup2(fd, self._fd, inheritable=False)  # other threads use the old number
        os.close(fd)

    @property
    def size(self) -> int:
        """Size of the file in bytes; may make a request."""
        return retried(self.path, lambda: self._file.size() if self._file else os.fstat(self._fd).st_size)

    def read(self, offset: int, count: int) -> bytes:
        """Return the bytes at `offset`, fewer than `count` only at the end of the file."""
        try:
            return self._read(offset, count)
        except OSError:
            return retried(self.path, lambda: self._read_again(offset, count))

    def _read_again(self, offset: int, count: int) -> bytes:
        self._open()  # a stale handle stays stale
        return self._read(offset, count)

    def _read(self, offset: int, count: int) -> bytes:
        if self._file is not None:
            return self._file.read_at(count, offset)
        data = os.pread(self._fd, count, offset)
        while len(data) < count:  # Linux returns at most 2 GiB per call, and signals may interrupt a read
            more = os.pread(self._fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        elif self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _SourceStream(io.RawIOBase):
    """A Source as a Python file, which closes the source with itself."""

    def __init__(self, source: Source):
        self._source, self._at, self._size = source, 0, source.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        data = self._source.read(self._at, left if count is None or count < 0 else min(count, left))
        self._at += len(data)
        return data

    def close(self) -> None:
        self._source.close()
        super().close()


def open_arrow(path: str) -> pa.NativeFile:
    """Open a file for Arrow's readers; their OSError is then always about the format, never the storage.

    Raises:
        DataError, StorageError: see `Source`; also raised inside Arrow's reader.
    """
    return pa.PythonFile(_SourceStream(Source(path)), mode="r")


def refuse_extensions(path: str, fields: Iterable[pa.Field]) -> None:
    """Raise DataError if a column is or nests an extension type: a value of Ray Data's, once Ray Data is imported, is a
    pickle that runs code when it becomes a Python object."""
    for field in fields:
        if _has_extension(field.type):
            raise DataError(f"{path}: {field.name}: is of an extension type, which may run code: store plain values")


def _has_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.ExtensionType):
        return True
    if isinstance(kind, pa.BaseExtensionType):  # one of Arrow's own, such as UUIDs; Arrow aborts on dictionaries
        return pa.types.is_dictionary(kind.storage_type) or _has_extension(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _has_extension(kind.value_type)
    return any(_has_extension(kind.field(number).type) for number in range(kind.num_fields))


def open_binary(path: str) -> io.BufferedReader:
    """Open a file as a buffered, seekable Python stream; errors as of `Source`."""
    return io.BufferedReader(_SourceStream(Source(path)), _BUFFER)


def windowed(source: Source, width: int) -> Callable[[int, int], bytes]:
    """Return fetch(offset, count) for sequential reading: it reads `source` at least `width` bytes at once.

    The previous window is kept, so a short step back across its edge needs no second read.
    """
    windows = [(0, b""), (0, b"")]

    def fetch(offset: int, count: int) -> bytes:
        for start, window in windows:
            at = offset - start
            if at >= 0 and at + count <= len(window):
                return window[at : at + count]
        windows[1] = windows[0]
        windows[0] = (offset, source.read(offset, max(width, count)))
        return windows[0][1][:count]

    return fetch


def forward_reads(source: Source) -> Callable[[int, int], bytes]:
    """Return fetch(offset, count) for rising offsets: plain reads of a local file, windows of an object store."""
    return source.read if is_local(source.path) else windowed(source, _WINDOW)


def read_bytes(path: str) -> bytes:
    """Return the content of a small file; DataError if it cannot be read."""
    with Source(path) as source:
        return source.read(0, source.size)
