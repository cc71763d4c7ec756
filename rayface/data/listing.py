"""Find the shards of a dataset directory, and the tars in it that are not read and must be reported."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections import deque
from collections.abc import Iterator, Sequence

from rayface.data.shards.samples import NOT_A_TAR, Fault
from rayface.storage import DataError, FileInfo, is_local, join, list_entries, require_utf8

# What list_entries says that there is no such of.
DATASET_FOLDER = "dataset folder: `rayface convert` makes one of your images, `rayface synth` of drawn ones"
_NO_SHARDS = "no tar shards (*.tar) in this folder: `rayface convert` makes a dataset of a folder of images"
_CODECS = {
    "gz": "gzip",
    "tgz": "gzip",
    "bz2": "bz2",
    "tbz": "bz2",
    "tbz2": "bz2",
    "zst": "zstd",
    "tzst": "zstd",
    "lz4": "lz4",
}
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
# An extracted dataset with a folder for each of a million people may be next to the tars.
_MAX_SUBFOLDERS = 1000


def is_compressed(name: str) -> bool:
    return _COMPRESSED.search(name) is not None


def codec_of(name: str) -> str | None:
    """Return Arrow's name of a tar's compression, None for a plain tar; DataError if Arrow does not support it."""
    if not is_compressed(name):
        return None
    suffix = name.rpartition(".")[2].lower()
    if suffix not in _CODECS:
        raise DataError(f"{name}: .{suffix} is not read: unpack it, or pack it with gzip")
    return _CODECS[suffix]


def shard_files(files: Sequence[FileInfo]) -> list[FileInfo]:
    """Return the tar files of a folder, without leftovers of an interrupted writer."""
    return [file for file in files if _is_tar(file.name)]


def named_shards(root: str, files: Sequence[FileInfo]) -> list[FileInfo]:
    """Return the shards of a dataset directory; DataError for a path that is not UTF-8, which no manifest can hold."""
    shards = shard_files(files)
    for path in (root, *(join(root, file.name) for file in shards)):
        require_utf8(path)
    return shards


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and not name.startswith(".")


def tars_not_read(
    root: str,
    files: Sequence[FileInfo],
    folders: Sequence[str],
    *,
    dataset_marker: str | None = None,
    most_folders: int | None = _MAX_SUBFOLDERS,
    unlisted: list[str] | None = None,
) -> list[str]:
    """Return the compressed tars of a folder and all tars in its sub-folders, as paths relative to it.

    Args:
        files, folders: entries of `root`.
        dataset_marker: sub-folders with a file of this name are separate datasets and skipped.
        most_folders, unlisted: as in `files_below`.
    """
    found = [file.name for file in files if is_compressed(file.name)]
    for folder, names in files_below(root, folders, most_folders=most_folders, unlisted=unlisted):
        if dataset_marker not in names:
            found += [f"{folder}/{name}" for name in names if _is_tar(name) or is_compressed(name)]
    return found


def files_below(
    root: str,
    folders: Sequence[str],
    *,
    most_folders: int | None = _MAX_SUBFOLDERS,
    unlisted: list[str] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Yield (sub-folder relative to `root`, names of its files) for all sub-folders, given the first level of them.

    Hidden sub-folders, those that cannot be listed (lost+found), and links to folders already seen are skipped.

    Args:
        most_folders: maximum number of sub-folders to search; None: all.
        unlisted: the sub-folders that cannot be listed are added to it.
    """
    waiting = deque(folders)
    seen = {os.path.realpath(root)}
    for _ in itertools.count() if most_folders is None else range(most_folders):
        if not waiting:
            break
        folder = waiting.popleft()
        path = join(root, folder)
        place = os.path.realpath(path) if is_local(path) else path
        if folder.rpartition("/")[2].startswith(".") or place in seen:
            continue
        seen.add(place)
        try:
            files, folders = list_entries(path)
        except DataError:
            if unlisted is not None:
                unlisted.append(folder)
            continue
        yield folder, [file.name for file in files]
        waiting.extend(f"{folder}/{name}" for name in folders)


def refuse_not_read(root: str, names: Sequence[str], *, has_shards: bool) -> None:
    """Raise DataError for a folder with tars that are not read, or without shards."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DataError(f"{root}: {names[0]}{more}: {_reason(names[0])}; {_remedy(root)}")
    if not has_shards:
        raise DataError(f"{root}: {_NO_SHARDS}")


def faults_not_read(root: str, names: Sequence[str]) -> list[Fault]:
    """Return a fault for every tar that is not read; the number of samples in it is unknown."""
    return [
        Fault(
            shard=join(root, name),
            member=None,
            reason=f"{_reason(name)}; {_remedy(root)}",
            num_lost=0,
            kind="not read",
        )
        for name in names
    ]


def refuse_not_a_tar(faults: Sequence[Fault]) -> None:
    """Raise DataError if a whole shard is unreadable, because without a manifest the loss is unknown."""
    unreadable = [fault for fault in faults if fault.kind == NOT_A_TAR]
    if unreadable:
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise DataError(f"{unreadable[0]}{more}; repair it, or remove it from the folder")


def _reason(name: str) -> str:
    what = "a compressed tar" if is_compressed(name) else "a tar in a sub-folder"
    return f"{what} is not read as a shard"


def _remedy(root: str) -> str:
    return f"make one dataset of all: `rayface convert --from webdataset {shlex.quote(root)} OUT`, or move it elsewhere"
