"""What decides the result of a conversion: a resume must not change it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rayface.data.conversion.settings import ConvertSettings
from rayface.data.sources.base import DatasetSource
from rayface.job_folder import changed_name
from rayface.pools import thread_pool
from rayface.storage import REQUESTS, DataError, is_local, locate, retried

FAULTS = "faults"  # in the job file, from when the dataset is complete
_REMEDY = "restore it to resume, or delete the folder and run again"


def job_of(sources: Sequence[DatasetSource], settings: ConvertSettings) -> dict[str, object]:
    """Return what decides the bytes, with size and time of each of the sources' files."""
    return {
        "sources": [
            {
                "kind": source.kind,
                "path": source.root,
                "settings": asdict(source.settings),
                "parts": hashlib.sha256("\n".join(source.inventory()).encode("utf-8", "surrogateescape")).hexdigest(),
            }
            for source in sources
        ],
        "files": _states([path for source in sources for path in source.input_files()]),
        **{name: value for name, value in asdict(settings).items() if name != "max_corrupt_fraction"},
    }


def changed_in_job(before: Mapping[str, Any], job: Mapping[str, Any], folder: str) -> str | None:
    """Return the first name whose value differs in the stored job of a folder, and in this one.

    Raises:
        DataError: a file of the sources differs, or the names of their parts.
    """
    before = {name: value for name, value in before.items() if name != FAULTS}
    name = changed_name({**before, "sources": _without_parts(before)}, {**job, "sources": _without_parts(job)})
    if name == "files" and (file := changed_name(before.get("files", {}), job["files"])):
        raise DataError(f"{folder}: {file} has changed since the job started (its size or time): {_REMEDY}")
    if name is None and changed_name(before, job):
        paths = [new["path"] for old, new in zip(before["sources"], job["sources"], strict=True) if old != new]
        raise DataError(f"{folder}: {paths[0]} has other folders or files than when the job started: {_REMEDY}")
    return name


def _without_parts(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{**source, "parts": None} for source in job.get("sources", ())]


def _states(paths: Sequence[str]) -> dict[str, str]:
    with thread_pool(REQUESTS) as pool:
        return dict(zip(paths, pool.map(_state, paths), strict=True))


def _state(path: str) -> str:
    size, time = retried(path, lambda: _local_size_and_time(path) if is_local(path) else _size_and_time(path))
    return "missing" if size is None else f"{size} bytes, {time} ns"


def _local_size_and_time(path: str) -> tuple[int | None, int | None]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None, None
    return found.st_size, found.st_mtime_ns


def _size_and_time(path: str) -> tuple[int | None, int | None]:
    filesystem, inside = locate(path)
    found = filesystem.get_file_info(inside)
    return found.size, found.mtime_ns
