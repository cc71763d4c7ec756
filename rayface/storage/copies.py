"""Local copies of files of an object store, and local folders that are uploaded, for code that works on a disk only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs as pafs

from rayface.credentials import mask
from rayface.storage.errors import DataError, one_line, retried
from rayface.storage.paths import is_local, join, locate, make_folder, normalise, require_lasting, split
from rayface.storage.reads import Source
from rayface.storage.writes import DAY, atomic_stream, temporary_name

CACHE_VARIABLE = "RAYFACE_CACHE"
_BLOCK = 8 << 20
_UNUSED_SECONDS = 30 * 24 * 3600.0  # after which a copy is deleted


def cache_folders(kind: str) -> Iterator[Path]:
    """Yield folders for a kind of files. One set by the user is the only one; a home may be missing or read-only."""
    import platformdirs  # the machine of the GPU kit lacks it

    if named := os.environ.get(CACHE_VARIABLE):
        yield Path(named) / kind
        return
    yield Path(platformdirs.user_cache_dir("rayface")) / kind
    temporary = Path(tempfile.gettempdir()) / f"rayface-{os.getuid()}"
    with contextlib.suppress(OSError):
        temporary.mkdir(mode=0o700, exist_ok=True)
        found = temporary.lstat()
        # Everybody may write to /tmp: do not trust files of another user.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            yield temporary / kind


def local_copy(path: str | Path, *, beside: Collection[str] = ()) -> Path:
    """Return the local path of an input file: the path itself or, of a URI, that of a copy in the user's cache.

    A copy is complete or absent, shared by all processes of the user, made again when the file changes in the store,
    and deleted when it was not used for 30 days.

    Args:
        beside: names of files in the same folder that are copied with it, where they exist.

    Raises:
        DataError: there is no such file in the store, or no folder for the copy can be written; one line.
        StorageError: see `retried`.
    """
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(normalise(text))
    if is_local(text):
        return Path(text)
    folder, name = split(text)
    files = _files(folder, (name, *beside))
    if name not in files:
        raise DataError(f"{text}: no such file")
    key = hashlib.sha256(json.dumps([mask(folder), sorted(files.items())]).encode()).hexdigest()[:32]

    def fill(copy: Path) -> None:
        for each in files:
            download(join(folder, each), copy / each)

    for base in cache_folders("copies"):
        if os.path.isdir(base / key):  # Path.is_dir raises if the home is not accessible
            with contextlib.suppress(OSError):
                os.utime(base / key)
            return base / key / name
        delete_unused(base)
    return store_in_cache("copies", key, fill) / name


def node_cache(kind: str) -> Path:
    """Return the first folder of the cache that can be written.

    Raises:
        DataError: there is none.
    """
    tried = []
    for folder in cache_folders(kind):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
            tried.append(f"{folder}: cannot be written")
        except OSError as error:
            tried.append(f"{folder}: cannot be written ({one_line(error)})")
    raise _no_cache(tried)


def download(uri: str, path: Path) -> None:
    """Copy a file of a store to a local path, under which it appears complete.

    Raises:
        DataError, StorageError: it cannot be read from the store, see `retried`.
    """
    temporary = Path(temporary_name(str(path)))
    try:
        with Source(uri) as source, temporary.open("wb") as file:
            for start in range(0, source.size, _BLOCK):
                file.write(source.read(start, _BLOCK))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def store_in_cache(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder `key` of the cache, filled by `fill`, in the first place that can be written.

    Raises:
        DataError: there is none.
    """
    tried = []
    for base in cache_folders(kind):
        try:
            return _filled(base / key, fill)
        except OSError as error:
            tried.append(f"{base}: cannot be written ({one_line(error)})")
    raise _no_cache(tried)


def _no_cache(tried: list[str]) -> DataError:
    return DataError(f"{'; '.join(tried)}; set {CACHE_VARIABLE} to a folder that can")


def _files(folder: str, names: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return size and time of those of the files that exist."""
    filesystem, inside = locate(folder)
    paths = [f"{inside}/{name}" for name in names]
    infos = retried(folder, lambda: filesystem.get_file_info(paths))
    return {each.base_name: (each.size, each.mtime_ns or 0) for each in infos if each.type == pafs.FileType.File}


def _filled(folder: Path, fill: Callable[[Path], None]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    delete_unused(folder.parent, ".tmp-*", after=DAY)  # of killed writers
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    try:
        fill(temporary)
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process has filled it first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def delete_unused(folder: Path, pattern: str = "*", *, after: float = _UNUSED_SECONDS) -> None:
    """Delete folders of the cache that were not used for 30 days, or another time, as far as possible."""
    with contextlib.suppress(OSError):
        for each in folder.glob(pattern):
            if each.stat().st_mtime < time.time() - after:
                shutil.rmtree(each, ignore_errors=True)


def upload(source: Path, target: str) -> None:
    """Copy a local file to a path or URI, under which it appears complete; an existing one is replaced.

    Raises:
        DataError, StorageError: it cannot be written, see `retried`.
    """

    def copy() -> None:
        with source.open("rb") as file, atomic_stream(target) as stream:
            shutil.copyfileobj(file, stream, _BLOCK)

    retried(target, copy, "cannot be written")


@contextmanager
def staged_folder(out: str | Path, field: str) -> Iterator[Path]:
    """Provide a local folder for the files of a small output: `out` if it is local, else one that is uploaded to it.

    The files are uploaded when the block ends without an error, in the order in which they were written: a reader that
    starts with the last one finds the others.

    Args:
        field: name of the setting, for messages.

    Raises:
        DataError: the output cannot be written, or would be deleted with a Ray job; one line.
    """
    target = normalise(out)
    if is_local(target):
        require_lasting(target, f"{field}: {target}")
        yield Path(target)
        return
    make_folder(target)  # fail before the work
    with tempfile.TemporaryDirectory(prefix="rayface-out-") as temporary:
        folder = Path(temporary)
        yield folder
        paths = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path)):
            upload(path, join(target, path.relative_to(folder).as_posix()))
