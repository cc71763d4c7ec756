"""Fingerprints of what a stage is made of and no stage has made: photographs, datasets, models, files."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from rayface.data.dataset import open_dataset
from rayface.data.sources.folder import is_hidden
from rayface.experiment.spec import Stage
from rayface.experiment.verbs import DATASETS, KEYS, PATHS, VERBS, of_file
from rayface.storage import locate, normalise, one_line

_HASHED_BYTES = 2**30  # a larger file is known by its size and time
_CHUNK = 2**23

# Options whose folders say in a file what they hold.
_MARKS: dict[str, Callable[[Path], str | None]] = {
    "embeddings": VERBS["embed"].mark,
    "exclude": VERBS["embed"].mark,
    **dict.fromkeys(("model", "head", "train.teacher", "backbone.weights"), of_file("model.json")),
}


def input_paths(stage: Stage, resolved: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """Paths that a stage's options name themselves, and, of what it trains by a config, that one's keys."""
    references, found = stage.references(), {}
    for option in (*PATHS, *(() if resolved is None else KEYS)):
        said = None if resolved is None or option in references else resolved.get(option)
        if paths := stage.own_paths(option, said):
            found[option] = paths
    return found


def fingerprint(option: str, paths: Sequence[str]) -> str:
    """What changes when that which an option names does.

    Raises:
        ValueError: it is not there, or cannot be read; one line.
    """
    if option in DATASETS:
        # How labels are joined is a setting of the stage.
        return ",".join(open_dataset(path, max_corrupt_fraction=1.0).digest for path in paths)
    (path,) = map(normalise, paths)
    mark = _MARKS[option](Path(path)) if option in _MARKS and "://" not in path else None
    if mark is not None:
        return mark
    filesystem, inside = locate(path)
    try:
        entry = filesystem.get_file_info(inside)
        if entry.type == pafs.FileType.File:
            return _of_file(filesystem, entry)
        if entry.type == pafs.FileType.Directory:
            return _of_folder(filesystem, inside)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{option}: {path}: cannot be read ({one_line(error)})") from error
    raise ValueError(f"{option}: {path}: does not exist")


def _of_file(filesystem: Any, entry: Any) -> str:
    if entry.size > _HASHED_BYTES:
        return hashlib.sha256(repr((entry.size, entry.mtime_ns)).encode()).hexdigest()
    digest = hashlib.sha256()
    with filesystem.open_input_stream(entry.path) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _of_folder(filesystem: Any, root: str) -> str:
    """Names, sizes and times of all files below, but for hidden ones; one folder's at a time, there may be millions."""
    digest = hashlib.sha256()
    folders = [root]
    while folders:
        entries = filesystem.get_file_info(pafs.FileSelector(folders.pop()))
        for entry in sorted(entries, key=lambda entry: entry.path):
            if is_hidden(entry.base_name):
                continue
            if entry.type == pafs.FileType.Directory:
                folders.append(entry.path)
            else:
                name = entry.path.removeprefix(root)
                digest.update(repr((name, entry.size, entry.mtime_ns)).encode())
    return digest.hexdigest()
