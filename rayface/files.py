"""Local files and folders: written whole and durably, hashed, numbered, and owned by one process at a time."""

import contextlib
import glob
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rayface.credentials import masked
from rayface.storage import DataError, atomic_stream, sync_folder

LOCK = ".lock"
logger = logging.getLogger(__name__)


def write_file(path: Path, content: bytes) -> Path:
    """Write a file: temporary name, fsync, rename, fsync of the folder.

    Raises:
        OSError: it cannot be written; what stood there before is unchanged.
    """
    with atomic_stream(str(path)) as stream:
        stream.write(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text as `write_file` does."""
    return write_file(path, text.encode())


def write_json(path: Path, value: Any) -> Path:
    """Write indented JSON as `write_file` does, credentials masked."""
    return write_text(path, json.dumps(masked(value), indent=1))


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def publish(temporary: Path, path: Path) -> None:
    """Give a finished local file, or a folder of files that are on disk, its name in the same folder, durably."""
    if temporary.is_file():
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(str(path.parent))


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hold_lock(path: Path) -> FileLock:
    """Lock a file, made if missing, until `release` is called or this process ends.

    A file system without locks locks nothing: the caller goes on without.

    Raises:
        filelock.Timeout: another process holds the lock.
        OSError: the file cannot be made.
    """
    path.touch()
    # A soft lock, which filelock would fall back to, outlives a process that is killed.
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        logger.debug("%s: no locks on this file system: %s", path, error)
    return lock


@contextlib.contextmanager
def exclusive_folder(folder: Path, name: str, *, lock: str = LOCK) -> Iterator[None]:
    """Own a local folder, made if missing, while inside; ownership ends with the process.

    Args:
        name: the folder as messages name it, for example "train.output: DIR".
        lock: name of the lock file in it.

    Raises:
        DataError: the folder cannot be written, or another process owns it; one line.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = hold_lock(folder / lock)
    except Timeout:
        raise DataError(f"{name}: another process is at work in it: wait for it, or stop it first") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be written: {error.strerror}: choose another directory") from error
    try:
        yield
    finally:
        held.release()


def numbered_folders(root: Path, name: str) -> dict[int, Path]:
    """Return the folders NAME-001, NAME-002, ... under `root` by number."""
    found = {}
    for path in root.glob(f"{glob.escape(name)}-*"):
        if match := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name):
            found[int(match[1])] = path
    return found


def next_numbered_folder(root: Path, name: str) -> Path:
    """Return the path of the next free folder NAME-NNN under `root`; it is not made."""
    return root / f"{name}-{max(numbered_folders(root, name), default=0) + 1:03d}"
