"""Paths and URIs of any pyarrow.fs filesystem: their parts, filesystem and folders."""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as pafs

from rayface.credentials import openable
from rayface.storage.errors import DataError, one_line, printable, retried
from rayface.storage.servers import remember_server

DISK_RULE = "must be a path on a disk that all nodes share, not a URI: mount the storage"
_JOB_DIRECTORIES = "/runtime_resources/working_dir_files/"
_ONE_SLASH = re.compile(r"(s3|gs|gcs|abfss?|hdfs|https?|file):/(?!/)")
REQUESTS = 64  # maximum concurrent requests of a process to an object store


@dataclass(frozen=True)
class FileInfo:
    """One file of a folder; size in bytes, mtime in ns since 1970 (0 if the store has none)."""

    name: str
    size: int
    mtime_ns: int


def _open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    pa.set_io_thread_count(max(pa.io_thread_count(), REQUESTS))  # an S3 client opens as many connections
    opened = pafs.FileSystem.from_uri(uri)
    remember_server(uri)
    return opened


# Opening an S3 filesystem requests the bucket's region: cache it per bucket.
_filesystem = functools.lru_cache(maxsize=256)(_open_filesystem)


def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """Return (pyarrow filesystem, path in it) of a plain path or URI; DataError for an unknown scheme.

    Object names are taken as they are, spaces and percent signs included; only file:// is percent-decoded.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.abspath(path)
    base, question, query = openable(path).partition("?")
    scheme, _, rest = base.partition("://")
    bucket, _, name = rest.partition("/")
    root = f"{scheme}://{bucket}/{question}{query}"
    filesystem: pafs.FileSystem
    filesystem, inside = retried(path, lambda: _filesystem(root), "cannot be opened")
    above = f"{inside.rstrip('/')}/" if inside or not bucket else ""
    return filesystem, f"{above}{unquote(name) if scheme == 'file' else name}".rstrip("/") or above


def normalise(path: str | Path) -> str:
    """Return an absolute local path, or the URI unchanged (file:// becomes a plain path).

    Raises:
        DataError: a URI with one slash, which would become a local folder.
    """
    text = os.fspath(path)
    if _ONE_SLASH.match(text):
        scheme, _, rest = text.partition(":/")
        raise DataError(f"{text}: is no URI: write {scheme}://{rest}")
    if text.startswith("file://"):
        return locate(text)[1]
    if "://" in text:
        return text
    return os.path.abspath(os.path.expanduser(text))


def join(folder: str, name: str) -> str:
    """Return the path or URI of `name` in `folder`, or an absolute `name` unchanged; a URI's query stays last."""
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
    """Return the local path of a setting named `field`; file:// is accepted. DataError for another URI."""
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(normalise(text))
    if not is_local(text):
        raise DataError(f"{field}: {text}: {DISK_RULE}" if field else f"{text}: {DISK_RULE}")
    return Path(text)


def is_lasting(path: str | Path) -> bool:
    """Return whether a local path is outside the working directory of a Ray job, which Ray deletes with the job."""
    return _JOB_DIRECTORIES not in os.path.abspath(path)


def require_lasting(path: str | Path, field: str) -> None:
    """Refuse an output in the working directory of a Ray job, which Ray deletes with the job.

    Raises:
        DataError: one line that starts with `field`.
    """
    if not is_lasting(path):
        raise DataError(
            f"{field}: is in the working directory of a Ray job, which is deleted with the job: must be an absolute "
            "path on a disk that lasts, or a URI"
        )


def require_utf8(path: str) -> None:
    """Refuse a path that is not valid UTF-8, which manifests and indices cannot name.

    Raises:
        DataError: one line.
    """
    if printable(path) != path:
        raise DataError(f"{path}: is not valid UTF-8: rename it")


def refuse_repeated(paths: Sequence[str], field: str) -> None:
    """Refuse paths of which two are of one place, by a symbolic link or a slash at the end.

    Raises:
        DataError: one line.
    """
    first: dict[str, str] = {}
    for path in paths:
        base, question, query = path.partition("?")
        place = os.path.realpath(path) if is_local(path) else f"{base.rstrip('/')}{question}{query}"
        if place in first:
            also = "" if first[place] == path else f", also as {first[place]}"
            raise DataError(f"{field}: {path}: is given twice{also}: leave one of them out")
        first[place] = path


def list_files(folder: str, kind: str = "folder") -> list[FileInfo]:
    """Return the files directly in `folder`, by name; DataError if there is no such folder (of that `kind`)."""
    return list_entries(folder, kind)[0]


def list_entries(folder: str, kind: str = "folder") -> tuple[list[FileInfo], list[str]]:
    """Return the files, by name, and the names of the sub-folders of `folder`; DataError as list_files."""
    if is_local(folder):
        found = retried(folder, lambda: _local_entries(folder), "cannot be listed")
        if found is None:
            raise DataError(f"{folder}: no such {kind}")
        return found
    filesystem, inside = locate(folder)

    def entries_of_folder() -> list[pafs.FileInfo] | None:
        if filesystem.get_file_info(inside).type != pafs.FileType.Directory:
            return None
        return filesystem.get_file_info(pafs.FileSelector(inside))

    entries = retried(folder, entries_of_folder, "cannot be listed")
    if entries is None:
        raise DataError(f"{folder}: no such {kind}")
    files = [FileInfo(e.base_name, e.size, e.mtime_ns or 0) for e in entries if e.type == pafs.FileType.File]
    folders = [e.base_name for e in entries if e.type == pafs.FileType.Directory]
    return sorted(files, key=lambda file: file.name), sorted(folders)


def _local_entries(folder: str) -> tuple[list[FileInfo], list[str]] | None:
    """Return the files and sub-folders of a local folder, None if there is none; Arrow fails at names not of UTF-8."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    files, folders = [], []
    with entries:
        for entry in entries:
            try:
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.is_file():
                    about = entry.stat()
                    files.append(FileInfo(entry.name, about.st_size, about.st_mtime_ns))
            except OSError as error:  # it was deleted in between, or is a link to itself
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
    return sorted(files, key=lambda file: file.name), sorted(folders)


def list_names(folder: str) -> list[str]:
    """Return the names of all entries of an existing folder, subfolders included."""
    if is_local(folder):
        return sorted(retried(folder, lambda: os.listdir(folder), "cannot be listed"))
    filesystem, inside = locate(folder)
    entries = retried(folder, lambda: filesystem.get_file_info(pafs.FileSelector(inside)), "cannot be listed")
    return sorted(entry.base_name for entry in entries)


def exists(path: str) -> bool:
    """Return whether there is a file or folder; DataError or StorageError if the store does not answer."""
    filesystem, inside = locate(path)
    found = retried(path, lambda: filesystem.get_file_info(inside))
    return bool(found.type != pafs.FileType.NotFound)


def make_folder(folder: str) -> None:
    """Create a folder and its parents; DataError if that fails, or if it would be deleted with the job."""
    filesystem, inside = locate(folder)
    if not is_local(folder):
        retried(folder, lambda: filesystem.create_dir(inside, recursive=True), "cannot be written")
        return
    require_lasting(inside, folder)
    require_utf8(folder)
    try:
        filesystem.create_dir(inside, recursive=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{folder}: cannot be written ({one_line(error)})") from None


def delete(path: str) -> None:
    """Delete one file."""
    filesystem, inside = locate(path)
    filesystem.delete_file(inside)
