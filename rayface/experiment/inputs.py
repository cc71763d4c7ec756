"""Fingerprints of a stage's external inputs: photographs, datasets, models, files."""

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
from rayface.models.model_info import DESCRIPTION
from rayface.stages import INPUT_KINDS, INPUT_PATHS, fingerprints
from rayface.storage import locate, normalise, one_line

_HASHED_BYTES = 2**30  # larger files are fingerprinted by size and modification time
_CHUNK = 2**23

# Fingerprints of folders that hold a file describing their content, by kind of input.
_of_description = fingerprints.of_file(DESCRIPTION)  # an evaluation with write_card writes its figures into it
_OWN: dict[str, Callable[[Path], str | None]] = {
    "embeddings": fingerprints.of_embeddings,
    "model": lambda folder: fingerprints.of_fields(DESCRIPTION, "sha256")(folder) or _of_description(folder),
}


def input_paths(stage: Stage, config: Config) -> dict[str, tuple[str, ...]]:
    """Return the external input paths that decide a stage's result, by config key."""
    decisive, resolved = stage.type.settings(config), configs.flat(config)
    found = {}
    for key in INPUT_PATHS:
        value = stage.keys[key] if key in stage.references() else resolved[key]
        paths = value if isinstance(value, list) else [value]
        if key in decisive and (own := tuple(normalise(path) for path in paths if path and not is_reference(path))):
            found[key] = own
    return found


def fingerprint(key: str, paths: Sequence[str]) -> str:
    """Return a value that changes when the content of the input does.

    Raises:
        ValueError: the input does not exist or cannot be read; one line.
    """
    kind = INPUT_KINDS.get(key, ("",))[0]
    if kind == "data":
        # How labels are joined is part of the stage's settings, not of this fingerprint.
        return ",".join(open_dataset(path, max_corrupt_fraction=1.0).digest for path in paths)
    return ",".join(_of_path(key, kind, path) for path in paths)


def _of_path(key: str, kind: str, path: str) -> str:
    own = _OWN[kind](Path(path)) if kind in _OWN and "://" not in path else None
    if own is not None:
        return own
    filesystem, inside = locate(path)
    try:
        entry = filesystem.get_file_info(inside)
        if entry.type == pafs.FileType.File:
            weights = filesystem.get_file_info(f"{inside}.data") if inside.endswith(".onnx") else None
            beside = [weights] if weights is not None and weights.type == pafs.FileType.File else []
            return "+".join(_of_file(filesystem, each) for each in [entry, *beside])
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
    """Hash names, sizes and times of all files below, except hidden ones; one folder at a time to bound memory."""
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
