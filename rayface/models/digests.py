"""digests.json: sizes and sha256 of the files in a folder, to detect corruption."""

import json
import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rayface.files import sha256_of
from rayface.storage import AnyPath, sync_folder

DIGESTS = "digests.json"
_READERS = 8  # threads; hashing releases the GIL

Digests = dict[str, dict[str, int | str]]


def digests_of(folder: Path, names: Iterable[str]) -> Digests:
    """Return size in bytes and sha256 of files in a folder, {name: {"bytes": ..., "sha256": ...}}."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}


def write_digests(folder: Path, digests: Digests) -> None:
    """Write digests.json and sync the folder to disk."""
    write_synced(folder / DIGESTS, json.dumps({"files": digests}, indent=1))
    sync_folder(str(folder))


def verify(folder: AnyPath, contents: Collection[str] | None = None) -> list[str]:
    """Return the faults of a folder: files that are missing, changed or unreadable; empty if it is valid.

    Reads every byte unless a size is wrong. Memory: 256 KB for each of 8 threads.

    Args:
        contents: names of the only files to read; of others the sizes are compared. None: all are read.
    """
    try:
        digests: Digests = json.loads((folder / DIGESTS).read_text())["files"]
        wanted = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in digests.items()}
    except FileNotFoundError:
        return [f"{folder / DIGESTS}: is missing"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return [f"{folder / DIGESTS}: cannot be read: {type(error).__name__}: {error}"]
    faults = [_size_fault(folder / name, size) for name, (size, _) in wanted.items()]
    if not any(faults):
        read = [name for name in wanted if contents is None or name in contents]
        with ThreadPoolExecutor(_READERS) as pool:
            faults = list(pool.map(lambda name: _content_fault(folder / name, wanted[name][1]), read))
    return [fault for fault in faults if fault]


def write_synced(path: Path, text: str) -> None:
    """Write a text file and sync it to disk."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _size_fault(path: AnyPath, wanted: int) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path}: is missing"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None if size == wanted else f"{path}: has {size:,} bytes, {wanted:,} were written"


def _content_fault(path: AnyPath, wanted: str) -> str | None:
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None if found == wanted else f"{path}: has sha256 {found[:12]}..., {wanted[:12]}... was written"
