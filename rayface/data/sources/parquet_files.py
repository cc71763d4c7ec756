"""Find the parquet files of a folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pyarrow import fs as pafs

from rayface.data.directory import refuse_unfinished
from rayface.data.manifest import UNFINISHED
from rayface.data.shards.samples import Fault
from rayface.data.sources.image_file import printable
from rayface.storage import DataError, exists, is_local, join, locate, one_line, retried
from rayface.values import counted

_SERIES = re.compile(r"(.*)-\d{5}-of-(\d{5})(?!\d)")


def find_files(root: str) -> list[str]:
    """Return the names of the parquet files in and below a folder; an empty name if `root` is one.

    Hidden files and folders are left out. A link to a folder is followed if it leads out of `root`, once.

    Raises:
        DataError: no parquet file, or a folder that cannot be listed.
    """
    filesystem, inside = locate(root)
    info = retried(root, lambda: filesystem.get_file_info(inside))
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{root}: no such folder or parquet file")
    if info.is_file:
        return [""]
    if exists(join(root, UNFINISHED)):
        refuse_unfinished(root, {UNFINISHED})
    found = _local_files(root, inside) if is_local(root) else _remote_files(root, filesystem, inside)
    names = sorted(name for name in found if name.endswith((".parquet", ".parq")) and not _is_hidden(name))
    if not names:
        raise DataError(f"{root}: no parquet file in this folder: give the file or its folder")
    if other := next((name for name in names if printable(name) != name), None):
        raise DataError(f"{root}: {printable(other)}: the name of a file must be UTF-8: rename it")
    return names


def missing_files(root: str, names: Sequence[str]) -> list[Fault]:
    """Return a fault for each series of files, named train-00000-of-00005, of which some are missing."""
    series = Counter((found[1], int(found[2])) for name in names if (found := _SERIES.match(name)))
    return [
        Fault(
            shard=join(root, f"{prefix}-*-of-{count:05d}"),
            member=None,
            reason=f"{count - present} of {counted(count, 'file')} are missing: download them",
            num_lost=count - present,
            kind="not read",
        )
        for (prefix, count), present in series.items()
        if present < count
    ]


def _remote_files(root: str, filesystem: pafs.FileSystem, inside: str) -> Iterator[str]:
    selector = pafs.FileSelector(inside, recursive=True)
    found = retried(root, lambda: filesystem.get_file_info(selector), "cannot be listed")
    return (entry.path[len(inside.rstrip("/")) + 1 :] for entry in found if entry.is_file)


def _local_files(root: str, inside: str) -> Iterator[str]:
    """Yield the names of the files below a folder, those in a folder with several links once."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{root}: {printable(str(error.filename))}: cannot be listed ({one_line(error)})")

    top, seen = os.path.realpath(inside), set()
    for path, folders, files in os.walk(inside, onerror=refuse, followlinks=True):
        place = os.path.realpath(path)
        is_inside = path != inside and os.path.islink(path) and os.path.commonpath([place, top]) == top
        if is_inside or place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(folder for folder in folders if not _is_hidden(folder))
        whole = (os.path.join(path, file) for file in files)
        yield from (os.path.relpath(file, inside) for file in whole if os.path.isfile(file) or os.path.islink(file))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
