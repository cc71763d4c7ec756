"""Work files of a curation job, which tasks on all nodes write and read: on a disk that they share, or in a store.

Tasks memory-map them, and read most of them many times. So a node keeps a copy of each file in a store that it has
written or read, in the cache of its user.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rayface.storage import (
    CACHE_VARIABLE,
    LARGEST_REMOTE,
    AnyPath,
    DataError,
    RemotePath,
    StorageError,
    atomic_stream,
    delete_unused,
    download,
    node_cache,
    one_line,
    temporary_name,
    upload,
    uri_of,
)

_CACHE = "work"
_DOWNLOADS = 8  # at a time, by one task
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


@dataclass(frozen=True, kw_only=True)
class WorkPath:
    """A work file, or a folder of work files; a file is complete or absent, and never changes.

    Attributes:
        root: folder of all work files, on a disk that all nodes share or in an object store.
        name: path relative to it.
        job: if they are in a store, the folder of their copies in the cache of each node; no other job has the name.
    """

    root: AnyPath
    name: str = ""
    job: str = ""

    def __truediv__(self, name: str) -> WorkPath:
        return WorkPath(root=self.root, name=f"{self.name}/{name}" if self.name else name, job=self.job)

    @property
    def path(self) -> AnyPath:
        """The file itself."""
        return self.root / self.name if self.name else self.root

    def exists(self) -> bool:
        """Return whether there is the file, or a file in the folder."""
        return (isinstance(self.root, RemotePath) and self._copy().is_file()) or self.path.exists()

    def names(self) -> set[str]:
        """Return the names of the files in a folder without others; none if it is not there."""
        path = self.path
        if isinstance(path, RemotePath):
            return set(path.files())
        return {each.name for each in path.iterdir()} if path.exists() else set()

    def local(self) -> Path:
        """Return the path to read the file by on this node.

        Raises:
            DataError, StorageError: it cannot be read from the store, or copied to this node; one line.
        """
        if isinstance(self.root, Path):
            return self.root / self.name
        from rayface.files import hold_lock  # the machine of the GPU kit lacks filelock, and Ray

        copy = self._copy()
        if not copy.is_file():
            with _on_this_disk(copy):
                self._prepare(copy)
                lock = hold_lock(copy.with_name(f"{copy.name}.lock"), wait=True)
                try:  # other tasks of this node wait for the copy
                    if not copy.is_file():
                        download(uri_of(self.path), copy)
                finally:
                    lock.release()
        return copy

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Yield a stream for the file, which appears when the block ends without an error.

        Raises:
            DataError, StorageError: it cannot be written to the store, or on this node before; one line.
        """
        if isinstance(self.root, Path):
            path = self.root / self.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_stream(str(path)) as stream:
                yield stream
            return
        copy = self._copy()
        temporary = Path(temporary_name(str(copy)))
        try:
            with _on_this_disk(copy):
                self._prepare(copy)
                with temporary.open("wb") as stream:
                    yield stream
            if temporary.stat().st_size > LARGEST_REMOTE:
                raise DataError(f"{self.path}: is larger than 5 GiB: give an output on a disk that all nodes share")
            upload(temporary, uri_of(self.path))
            os.replace(temporary, copy)  # last: a copy proves that the file is in the store
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self) -> None:
        """Delete it as far as possible, with its copies on this node and on all nodes of the running Ray, if one runs.

        What stays costs room only: no other job reads it, and copies are deleted when they were not used for 30 days.
        """
        if isinstance(self.root, RemotePath):
            from rayface.ray_tasks import on_all_nodes

            place = f"{self.job}/{self.name}"
            on_all_nodes(lambda: _delete(node_cache(_CACHE) / place))
        _delete(self.path)

    def _copy(self) -> Path:
        return node_cache(_CACHE) / self.job / self.name

    def _prepare(self, copy: Path) -> None:
        """Make the folder of a copy, and note that those of the job are used."""
        folder = node_cache(_CACHE) / self.job
        if not folder.exists():
            delete_unused(folder.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.utime(folder)


def local_paths(paths: Sequence[WorkPath]) -> list[Path]:
    """Return the paths to read files by on this node; several are copied at a time."""
    if not paths or isinstance(paths[0].root, Path):
        return [path.local() for path in paths]
    cache = node_cache(_CACHE)
    copies = [cache / path.job / path.name for path in paths]
    missing = [path for path, copy in zip(paths, copies, strict=True) if not copy.is_file()]
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        list(pool.map(WorkPath.local, missing))
    return copies


@contextmanager
def _on_this_disk(copy: Path) -> Iterator[None]:
    """Name the copy and the remedy where the disk of this node cannot take it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise DataError(
            f"{copy}: cannot be written ({one_line(error)}); set {CACHE_VARIABLE} to a folder that can"
        ) from None


def _delete(path: AnyPath) -> None:
    from rayface.files import remove_folder

    with suppress(OSError, DataError, StorageError):
        if path.is_file():
            path.unlink(missing_ok=True)
        else:
            remove_folder(path)
