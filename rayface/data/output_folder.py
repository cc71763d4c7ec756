"""Exclusive ownership of a new folder that is marked while it is written: a repeated call starts over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pyarrow as pa

from rayface.data.manifest import UNFINISHED
from rayface.files import exclusive_folder, remove_folder
from rayface.job_folder import require_empty
from rayface.storage import (
    DataError,
    delete,
    is_local,
    is_temporary,
    join,
    list_names,
    make_folder,
    normalise,
    path_of,
    write_bytes,
)


@contextlib.contextmanager
def exclusive_output(root: str, is_ours: Callable[[str], bool], *, key: str = "") -> Iterator[None]:
    """Own a new folder inside the context, marked by UNFINISHED, which the caller deletes when the folder is complete.

    Args:
        is_ours: whether a writer of this kind writes a file or folder of this name; if it was interrupted, these are
            deleted.
        key: config key of the folder, for messages.

    Raises:
        DataError: it is not empty, cannot be written, or another process owns it; one line.
    """
    name, marker = f"{key}: {root}" if key else root, join(root, UNFINISHED)
    make_folder(root)
    with contextlib.ExitStack() as stack:
        before = None  # the marker of an interrupted writer
        if UNFINISHED not in (names := list_names(root)):
            _refuse_not_empty(names, name)
        elif is_local(root):
            with contextlib.suppress(OSError):
                before = stack.enter_context(Path(marker).open("rb"))
        if is_local(root):
            stack.enter_context(exclusive_folder(Path(root), name, lock=UNFINISHED))
            names = [each for each in list_names(root) if each != UNFINISHED]
            # A writer that has finished since the folder was listed has deleted its marker: its files are complete.
            if names and (before is None or not os.fstat(before.fileno()).st_nlink):
                Path(marker).unlink(missing_ok=True)
                _refuse_not_empty(names, name)
        try:
            if not is_local(root):
                write_bytes(marker, b"")
            for path in (path_of(join(root, each)) for each in names if is_ours(each) and each != UNFINISHED):
                if path.is_dir():
                    remove_folder(path)
                else:
                    path.unlink(missing_ok=True)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{name}: cannot be written ({error})") from None
        yield


@contextlib.contextmanager
def new_folder(out: str | Path, names: Collection[str], *, key: str) -> Iterator[str]:
    """Own an output folder inside the context, new or empty; yield its path.

    It is marked UNFINISHED until the context ends without an error. On a disk, what an interrupted call has left is
    deleted: the output starts over.

    Args:
        names: names of the files and folders that are written.
        key: config key or argument of the folder, for messages.

    Raises:
        DataError: `out` is not empty or cannot be written.
    """
    root = normalise(out)
    make_folder(root)
    if not is_local(root) or UNFINISHED not in list_names(root):  # in a store, without a lock, it may be in use
        require_empty(root, key=key)
    with exclusive_output(root, lambda name: name in names or is_temporary(name), key=key):
        require_empty(root, key=key, beside=[UNFINISHED])
        yield root
        delete(join(root, UNFINISHED))


def _refuse_not_empty(names: list[str], name: str) -> None:
    if names:
        raise DataError(f"{name}: is not empty ({names[0]}); give a new folder, existing data is never overwritten")
