"""Work files of a curation job, which tasks on all nodes write and read: on a disk that they share, or in a store.

Tasks memory-map them, and read most of them many times. So a node keeps a copy of each file in a store that it has
written or read, in the cache of its user.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rayface.files import hold_lock
from rayface.ray_tasks import on_all_nodes
from rayface.storage import (
    AnyPath,
    RemotePath,
    atomic_stream,
    delete_unused,
    download,
    node_cache,
    temporary_name,
    upload,
)

_DOWNLOADS = 8  # at a time, by one task


@dataclass(frozen=True, kw_only=True)
class WorkPath:
    """A work file, or a folder of work files; a file is complete or absent, and never changes.

    Attributes:
        path: on a disk that all nodes share, or in an object store.
        copy: of a path in a store: that of its copies, relative to the cache of each node; begins with a name that is
            of this job only.
    """

    path: AnyPath
    copy: str = ""

    def __truediv__(self, name: str) -> WorkPath:
        return WorkPath(path=self.path / name, copy=self.copy and f"{self.copy}/{name}")

    def exists(self) -> bool:
        """Return whether there is the file, or a file in the folder."""
        if isinstance(self.path, RemotePath) and self._copy().exists():
            return True
        return self.path.exists()

    def local(self) -> Path:
        """Return the path to read it by on this node.

        Raises:
            DataError, StorageError: it cannot be read from the store; one line.
        """
        if not isinstance(self.path, RemotePath):
            return self.path
        copy = self._copy()
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            lock = hold_lock(copy.with_name(f"{copy.name}.lock"), wait=True)
            try:  # other tasks of this node wait for the copy
                if not copy.exists():
                    download(self.path.uri, copy)
            finally:
                lock.release()
        return copy

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Yield a stream for the file, which appears when the block ends without an error.

        Raises:
            DataError, StorageError: it cannot be written to the store; one line.
        """
        if not isinstance(self.path, RemotePath):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_stream(str(self.path)) as stream:
                yield stream
            return
        copy = self._copy()
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(temporary_name(str(copy)))
        try:
            with temporary.open("wb") as stream:
                yield stream
            upload(temporary, self.path.uri)
            os.replace(temporary, copy)  # last: a copy proves that the file is in the store
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self) -> None:
        """Delete it, with its copies on this node and on all nodes of the running Ray, if one runs."""
        if not isinstance(self.path, RemotePath):
            _remove(self.path)
            return
        if self.path.is_file():
            self.path.unlink(missing_ok=True)
        else:
            self.path.remove_tree()
        name = self.copy

        def delete_copies() -> None:
            _remove(node_cache("work") / name)
            delete_unused(node_cache("work"))  # of jobs that were never finished

        on_all_nodes(delete_copies)

    def _copy(self) -> Path:
        return node_cache("work") / self.copy


def _remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def local_paths(paths: Sequence[WorkPath]) -> list[Path]:
    """Return the paths to read files by on this node; several are copied at a time."""
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        return list(pool.map(WorkPath.local, paths))
