"""Local files and folders: atomic durable writes, hashes, numbered folders, exclusive ownership."""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from rayface.credentials import masked
from rayface.storage import AnyPath, DataError, RemotePath, StorageError, require_lasting, sync_folder, write_bytes

LOCK = ".lock"
P = TypeVar("P", bound=AnyPath)
_warned: list[Path] = []  # a folder without locks; one warning per process
logger = logging.getLogger(__name__)


def write_file(path: P, content: bytes | memoryview) -> P:
    """Write a file atomically: on a disk by temporary name, fsync, rename, fsync of the folder.

    Raises:
        OSError: it cannot be written; an existing file is unchanged.
        DataError, StorageError: it cannot be written to the object store.
    """
    if isinstance(path, RemotePath):
        path.upload(content)
    else:
        write_bytes(str(path), content)
    return path


def write_text(path: P, text: str) -> P:
    """Write UTF-8 text as `write_file` does."""
    return write_file(path, text.encode())


def write_json(path: P, value: object) -> P:
    """Write indented JSON as `write_file` does, credentials masked."""
    return write_text(path, json.dumps(masked(value), indent=1))


def read_json(path: AnyPath) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def open_to_append(path: Path) -> int:
    """Return the descriptor of a file, created if missing, for appending.

    Raises:
        OSError: it cannot be opened, or is a symbolic link: in a run directory from outside, to any file of this user.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file, or a folder of synced files, to its final name in the same folder, durably."""
    if temporary.is_file():
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(str(path.parent))


def sha256_of(path: AnyPath) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hold_lock(path: Path, *, wait: bool = False) -> FileLock:
    """Lock a file, created if missing, until `release` is called or this process ends.

    On a file system without locks, nothing is locked and the caller continues, with one warning per process.

    Args:
        wait: wait for another process that holds the lock.

    Raises:
        filelock.Timeout: another process holds the lock.
        OSError: the file cannot be created, or is a symbolic link.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "its lock is a symbolic link", str(path))
    path.touch()
    # A soft lock, filelock's fallback, would outlive a killed process.
    lock = FileLock(path, timeout=-1 if wait else 0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        _warn_without_locks(path.parent, error)
    return lock


def _warn_without_locks(folder: Path, error: OSError) -> None:
    if not _warned:
        _warned.append(folder)
        logger.warning(
            "%s: its file system has no locks (%s): nothing prevents a second process from writing there: mount Lustre "
            "with -o flock, NFS with a lock service",
            folder,
            error.strerror or error,
        )


@contextlib.contextmanager
def exclusive_folder(folder: Path, name: str, *, lock: str = LOCK) -> Iterator[None]:
    """Own a local folder, created if missing, inside the context; ownership ends with the process.

    Args:
        name: name of the folder in messages, for example "train.output: DIR".
        lock: name of the lock file in it.

    Raises:
        DataError: the folder cannot be written, or another process owns it; one line.
    """
    require_lasting(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = hold_lock(folder / lock)
    except Timeout:
        raise DataError(f"{name}: another process owns it: wait for it, or stop it first") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be written: {error.strerror}: choose another directory") from error
    try:
        yield
    finally:
        held.release()


def is_owned(folder: Path, *, lock: str = LOCK) -> bool:
    """Return whether a process owns a folder by `exclusive_folder`; True where that cannot be known."""
    if not (folder / lock).exists():
        return False
    try:
        held = hold_lock(folder / lock)
    except (Timeout, OSError):
        return True
    owned = not held.is_locked  # a file system without locks
    held.release()
    return owned


def remove_folder(folder: AnyPath) -> None:
    """Delete a scratch folder with its files as far as possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(DataError, StorageError):
        folder.remove_tree()


def numbered_folders(root: Path, name: str) -> dict[int, Path]:
    """Return the folders NAME-001, NAME-002, ... under `root` by number."""
    found = {}
    for path in root.glob(f"{glob.escape(name)}-*"):
        if match := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name):
            found[int(match[1])] = path
    return found


def next_numbered_folder(root: Path, name: str) -> Path:
    """Return the path of the next free folder NAME-NNN under `root`, without creating it."""
    return root / f"{name}-{max(numbered_folders(root, name), default=0) + 1:03d}"
