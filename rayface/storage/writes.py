"""Atomic, durable writes of files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs as pafs

from rayface.storage.errors import retried
from rayface.storage.paths import is_local, locate

LARGEST_REMOTE = 5 << 30  # maximum bytes of a file that S3 renames
_EMPTIED_FIRST = {"abfs"}
"""Stores that show an object empty before it is complete. HDFS does, too, but renames to no existing file."""
DAY = 24 * 3600.0  # seconds
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class AtomicFile:
    """A file that appears under its name only after `commit` made it durable; write to its `stream`.

    It is written under a temporary name and renamed, on every store. A killed process leaves at most the temporary
    file. On S3 a rename is a server-side copy of at most 5 GiB.
    """

    def __init__(self, path: str):
        self._filesystem, self._path = locate(path)
        self._local = is_local(path)
        self._temporary = temporary_name(self._path)
        self._done = False
        self.stream: BinaryIO
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
            rename(self._filesystem, self._temporary, self._path)
        self._done = True

    def abandon(self) -> None:
        """Close and delete the file unless it was committed; never raises, because it follows an error."""
        if self._done:
            return
        self._done = True
        with contextlib.suppress(OSError, pa.ArrowException):
            self.stream.close()
        with contextlib.suppress(OSError, pa.ArrowException):
            self._filesystem.delete_file(self._temporary)


def rename(filesystem: pafs.FileSystem, old: str, new: str) -> None:
    """Rename a file of a store; by a copy on Azure without a hierarchical namespace, which renames nothing."""
    try:
        filesystem.move(old, new)
    except NotImplementedError:
        filesystem.copy_file(old, new)
        filesystem.delete_file(old)


@contextmanager
def atomic_stream(path: str) -> Iterator[BinaryIO]:
    """Yield a stream for a file that appears when the block ends without an error."""
    file = AtomicFile(path)
    try:
        yield file.stream
        file.commit()
    finally:
        file.abandon()


def temporary_name(path: str) -> str:
    """Return a unique, hidden name for a file while it is written.

    It is unique because a task that Ray considers lost may still write the same file as its replacement.
    """
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(name: str) -> bool:
    return _TEMPORARY.fullmatch(name) is not None


def delete_temporary(folder: str | Path, *, of: str = "", min_age: float = 0.0) -> None:
    """Delete temporary files and folders of killed writers in a local folder; nothing if there is no such folder.

    Args:
        of: name of the file that was written; "" for all.
        min_age: seconds since their last change, where another process may be writing; DAY is safe.
    """
    path = Path(folder)
    for name in filter(is_temporary, os.listdir(path) if path.is_dir() else ()):
        if of and name[1 : -len(".01234567.tmp")] != of:
            continue
        with contextlib.suppress(FileNotFoundError):
            if min_age and (path / name).lstat().st_mtime > time.time() - min_age:
                continue
            if (path / name).is_dir():
                shutil.rmtree(path / name, ignore_errors=True)
            else:
                (path / name).unlink()


def sync_folder(folder: str) -> None:
    """Sync the names in a local folder to disk; only then a rename in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: str, data: bytes | memoryview) -> None:
    """Write a small file atomically; in an object store it appears by one upload, without a rename, but on Azure.

    Raises:
        OSError: it cannot be written to the disk.
        DataError, StorageError: it cannot be written to the store, see `retried`.
    """
    if is_local(path):
        with atomic_stream(path) as stream:
            stream.write(data)
        return
    filesystem, inside = locate(path)

    def upload() -> None:
        if filesystem.type_name in _EMPTIED_FIRST:
            with atomic_stream(path) as stream:
                stream.write(data)
        else:
            with filesystem.open_output_stream(inside, compression=None) as stream:
                stream.write(data)

    retried(path, upload, "cannot be written")
