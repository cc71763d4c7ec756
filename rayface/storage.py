"""Files on a local disk or anything pyarrow.fs opens: ranged reads, and writes that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs as pafs

from rayface.credentials import is_masked, mask, openable

LARGEST_REMOTE = 5 << 30  # bytes of a file that S3 renames
_T = TypeVar("_T")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
REQUESTS = 64  # of one process to an object store at the same time
_BACK_OFF = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # seconds before each further try
# No retry mends these, nor a missing file or permission; all others (EMFILE, ESTALE, EIO, ETIMEDOUT, ...) may pass.
_PERMANENT = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
# Object stores report these as an OSError without a number.
_REFUSED = re.compile(
    r"ACCESS_DENIED|PERMISSION_DENIED|UNAUTHENTICATED|NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND|INVALID_ACCESS_KEY|"
    r"INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN"
)
_NOT_KEPT = ": its credentials are kept in no file: give the URI again with them, or set them in the environment"
_log = logging.getLogger(__name__)


class DataError(ValueError):
    """A dataset that cannot be used; the message is one line and names the file, the rule and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


class StorageError(RuntimeError):
    """An error of the storage that outlasted all retries; it says nothing about the data. One line: file and cause."""

    def __init__(self, message: str) -> None:
        super().__init__(mask(message))


def retried(path: str, operation: Callable[[], _T], what: str = "cannot be read") -> _T:
    """Return operation() on the storage of `path`, repeated with back-off while the system reports a passing error.

    Raises:
        DataError: the file or folder is missing, forbidden or none that can be opened.
        StorageError: an error that usually passes persisted for 45 s.
    """
    for delay in (*_BACK_OFF, None):
        try:
            return operation()
        except (pa.ArrowException, OSError) as error:
            reason = one_line(error)
            if not _may_pass(error):
                raise DataError(f"{path}: {what} ({reason}){_NOT_KEPT if is_masked(path) else ''}") from None
            if delay is None:
                raise StorageError(
                    f"{path}: {what} after {len(_BACK_OFF) + 1} tries ({reason}): the storage failed, the data may be "
                    "whole: run again when it is back"
                ) from None
            _log.warning("%s: %s (%s): next try in %g s", mask(path), what, mask(reason), delay)
            time.sleep(delay)
    raise AssertionError("unreachable")


def _may_pass(error: Exception) -> bool:
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError | PermissionError):
        return False
    return error.errno not in _PERMANENT and not _REFUSED.search(str(error))


@dataclass(frozen=True)
class FileInfo:
    """One entry of a folder; size in bytes, mtime in ns since 1970 (0 where the store keeps none)."""

    name: str
    size: int
    mtime_ns: int


def _open_filesystem(uri: str) -> tuple[Any, str]:
    pa.set_io_thread_count(max(pa.io_thread_count(), REQUESTS))  # an S3 client gets as many connections
    return pafs.FileSystem.from_uri(uri)


# Opening an S3 filesystem asks the network for the bucket's region: once per folder is enough.
_filesystem = functools.lru_cache(maxsize=256)(_open_filesystem)


def locate(path: str) -> tuple[Any, str]:
    """Return (pyarrow filesystem, path inside it) of a plain path or URI; DataError for an unknown scheme."""
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(path)
    uri = openable(path)
    folder, name = split(uri)
    if folder.partition("?")[0].endswith(("/", ":")):
        filesystem: Any
        filesystem, inside = retried(path, lambda: _filesystem(uri), "cannot be opened")
        return filesystem, inside
    filesystem, inside = retried(path, lambda: _filesystem(folder), "cannot be opened")
    return filesystem, f"{inside}/{name}"


def normalise(path: str | Path) -> str:
    """Return an absolute local path, or the URI as it is (file:// becomes a plain path)."""
    text = os.fspath(path)
    if text.startswith("file://"):
        return locate(text)[1]
    if "://" in text:
        return text
    return os.path.abspath(os.path.expanduser(text))


def join(folder: str, name: str) -> str:
    """Return the path or URI of `name` in `folder`, an absolute `name` as it is; a URI's query string stays last."""
    if name.startswith("/") or "://" in name:
        return name
    base, question, query = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{base.rstrip('/')}/{name}{question}{query}"


def split(path: str) -> tuple[str, str]:
    """Return folder and name of a path or URI, as `join` takes them."""
    base, question, query = path.partition("?") if "://" in path else (path, "", "")
    folder, _, name = base.rstrip("/").rpartition("/")
    return f"{folder}{question}{query}", name


def is_local(path: str) -> bool:
    return "://" not in path


def on_disk(path: str | Path, field: str = "") -> Path:
    """Return the local path that a setting (`field`) names, file:// included; DataError for another URI."""
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(normalise(text))
    if not is_local(text):
        rule = "must be a path on a disk that all nodes share, not a URI: mount the storage"
        raise DataError(f"{field}: {text}: {rule}" if field else f"{text}: {rule}")
    return Path(text)


def list_files(folder: str, kind: str = "dataset folder") -> list[FileInfo]:
    """Return the files directly in `folder`, by name; DataError where it is no folder (of that kind) to be read."""
    return list_entries(folder, kind)[0]


def list_entries(folder: str, kind: str = "dataset folder") -> tuple[list[FileInfo], list[str]]:
    """Return the files, by name, and the names of the sub-folders of `folder`; DataError as list_files."""
    filesystem, inside = locate(folder)

    def entries_of_folder() -> list[Any] | None:
        if filesystem.get_file_info(inside).type != pafs.FileType.Directory:
            return None
        return filesystem.get_file_info(pafs.FileSelector(inside))

    entries = retried(folder, entries_of_folder, "cannot be listed")
    if entries is None:
        raise DataError(f"{folder}: no such {kind}")
    files = [FileInfo(e.base_name, e.size, e.mtime_ns or 0) for e in entries if e.type == pafs.FileType.File]
    folders = [e.base_name for e in entries if e.type == pafs.FileType.Directory]
    return sorted(files, key=lambda file: file.name), sorted(folders)


class Source:
    """Random access to one file: `read(offset, count)`, `size`; thread-safe; a context manager.

    Errors of the system are retried; see `retried` for what is raised when they persist.
    """

    def __init__(self, path: str):
        self.path = path
        self._file: Any = None
        self._fd = -1
        retried(path, self._open)

    def _open(self) -> None:
        """Open the file, or open it again in place of a handle that fails."""
        if not is_local(self.path):
            filesystem, inside = locate(self.path)
            self._file = filesystem.open_input_file(inside)
            return
        fd = os.open(self.path, os.O_RDONLY)
        if self._fd < 0:
            self._fd = fd
            return
        os.dup2(fd, self._fd, inheritable=False)  # other threads read by the old number
        os.close(fd)

    @property
    def size(self) -> int:
        """Bytes of the file; may cost a request."""
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
        while len(data) < count:  # Linux returns at most 2 GiB at once, and signals may cut a read short
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

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.close()


class _SourceStream(io.RawIOBase):
    """A Source as a Python file, for readers that want one; closes the source with itself."""

    def __init__(self, source: Source):
        self._source, self._at, self._size = source, 0, source.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        left = self._size - self._at
        data = self._source.read(self._at, left if count is None or count < 0 else min(count, left))
        self._at += len(data)
        return data

    def close(self) -> None:
        self._source.close()
        super().close()


def open_arrow(path: str) -> pa.NativeFile:
    """Open a file for Arrow's readers, so that an OSError of theirs is of the format and never of the storage.

    Raises:
        DataError, StorageError: as Source does, also out of a reader that the file is given to.
    """
    return pa.PythonFile(_SourceStream(Source(path)), mode="r")


def windowed(source: Source, width: int) -> Callable[[int, int], bytes]:
    """Return fetch(offset, count) that reads `source` at least `width` bytes at a time, for reading forward.

    The window before the last is kept, so that a short step back over its edge costs no second read.
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


class AtomicFile:
    """A file that appears under its name only when `commit` has made it durable; write to its `stream`.

    On every store it is written under a temporary name and renamed. A process that is killed leaves at most a
    temporary one. On S3 a rename is a copy on its side, of at most 5 GiB.
    """

    def __init__(self, path: str):
        self._filesystem, self._path = locate(path)
        self._local = is_local(path)
        self._temporary = temporary_name(self._path)
        self._done = False
        self.stream: Any
        if self._local:
            self.stream = open(self._temporary, "wb")  # noqa: SIM115 (closed in commit or abandon)
        else:
            self.stream = self._filesystem.open_output_stream(self._temporary, compression=None)

    def commit(self) -> None:
        """Publish the file."""
        if self._local:
            self.stream.flush()
            os.fsync(self.stream.fileno())
            self.stream.close()
            os.replace(self._temporary, self._path)
            sync_folder(os.path.dirname(self._path))
        else:
            self.stream.close()
            self._rename()
        self._done = True

    def _rename(self) -> None:
        try:
            self._filesystem.move(self._temporary, self._path)
        except NotImplementedError:  # Azure without a hierarchical namespace
            self._filesystem.copy_file(self._temporary, self._path)
            self._filesystem.delete_file(self._temporary)

    def abandon(self) -> None:
        """Close and delete what was written, unless it was committed; never raises, as it follows an error."""
        if self._done:
            return
        self._done = True
        with contextlib.suppress(OSError, pa.ArrowException):
            self.stream.close()
        with contextlib.suppress(OSError, pa.ArrowException):
            self._filesystem.delete_file(self._temporary)


@contextmanager
def atomic_stream(path: str) -> Iterator[Any]:
    """A stream to write a file by, which appears when the block ends without an error."""
    file = AtomicFile(path)
    try:
        yield file.stream
        file.commit()
    finally:
        file.abandon()


def temporary_name(path: str) -> str:
    """Return a name for a file while it is written: hidden, never taken for a shard, and nobody else's.

    A task that was given up for lost may still write the same file as the one that was started in its place.
    """
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(name: str) -> bool:
    return _TEMPORARY.fullmatch(name) is not None


def delete_temporary(folder: str) -> None:
    """Delete what writers that were killed have left in a local folder."""
    for name in filter(is_temporary, os.listdir(folder)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))


def sync_folder(folder: str) -> None:
    """Have the names in a local folder on disk: a rename in it survives a power cut only then."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: str, data: bytes) -> None:
    """Write a small file so that it appears whole or not at all."""
    with atomic_stream(path) as stream:
        stream.write(data)


def make_folder(folder: str) -> None:
    """Make a folder and those above it; DataError where that cannot be done."""
    filesystem, inside = locate(folder)
    try:
        filesystem.create_dir(inside, recursive=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{folder}: cannot be written ({one_line(error)})") from None


def exists(path: str) -> bool:
    """Whether there is a file or folder; DataError or StorageError where that cannot be found out."""
    filesystem, inside = locate(path)
    found = retried(path, lambda: filesystem.get_file_info(inside))
    return bool(found.type != pafs.FileType.NotFound)


def list_names(folder: str) -> list[str]:
    """Return the names of all entries of an existing folder, subfolders included."""
    filesystem, inside = locate(folder)
    return sorted(entry.base_name for entry in filesystem.get_file_info(pafs.FileSelector(inside)))


def delete(path: str) -> None:
    """Delete one file."""
    filesystem, inside = locate(path)
    filesystem.delete_file(inside)


def read_bytes(path: str) -> bytes:
    """Return the whole of a small file; DataError where it cannot be read."""
    with Source(path) as source:
        return source.read(0, source.size)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
