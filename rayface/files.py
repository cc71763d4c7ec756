"""Files that appear under their name whole and durable, or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from rayface.credentials import masked
from rayface.storage import atomic_stream, sync_folder


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


def publish(temporary: Path, path: Path) -> None:
    """Give a finished local file, or a folder of files that are on disk, its name in the same folder, durably."""
    if temporary.is_file():
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(str(path.parent))
