"""Fingerprints of what a stage is made of and no stage has made: photographs, datasets, models, files."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from rayface import config as configs
from rayface.config import Config
from rayface.data.dataset import open_dataset
from rayface.data.sources.folder import is_hidden
from rayface.experiment.spec import Stage, is_reference
from rayface.stages import INPUT_KINDS, INPUT_PATHS, fingerprints
from rayface.storage import locate, normalise, one_line

_HASHED_BYTES = 2**30  # a larger file is known by its size and time
_CHUNK = 2**23

# By the kind of input: how folders say in a file what they hold.
_OWN: dict[str, Callable[[Path], str | None]] = {
    "embeddings": fingerprints.of_embeddings,
    "model": fingerprints.of_file("model.json"),
}


def input_paths(stage: Stage, config: Config) -> dict[str, tuple[str, ...]]:
    """Paths that no stage makes, by the keys that name them, of those that decide a stage's result."""
    decisive, resolved = stage.type.settings(config), configs.flat(config)
    found = {}
    for key in INPUT_PATHS:
        value = stage.keys[key] if key in stage.references() else resolved[key]
        paths = value if isinstance(value, list) else [value]
        if key in decisive and (own := tuple(normalise(path) for path in paths if path and not is_reference(path))):
            found[key] = own
    return found


def fingerprint(key: str, paths: Sequence[str]) -> str:
    """What changes when that which a key names does.

    Raises:
        ValueError: it is not there, or cannot be read; one line.
    """
    kind = INPUT_KINDS.get(key, ("",))[0]
    if kind == "data":
        # How labels are joined is a setting of the stage.
        return ",".join(open_dataset(path, max_corrupt_fraction=1.0).digest for path in paths)
    (path,) = paths
    own = _OWN[kind](Path(path)) if kind in _OWN and "://" not in path else None
    if own is not None:
        return own
    filesystem, inside = locate(path)
    try:
        entry = filesystem.get_file_info(inside)
        if entry.type == pafs.FileType.File:
            return _of_file(filesystem, entry)
        if entry.type == pafs.FileType.Directory:
            return _of_folder(filesystem, inside)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{key}: {path}: cannot be read ({one_line(error)})") from error
    raise ValueError(f"{key}: {path}: does not exist")


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
