"""Exclusive ownership of a job's output folder: create it, or resume the same job in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from rayface.credentials import masked
from rayface.files import LOCK, exclusive_folder
from rayface.storage import (
    LEASE,
    AnyPath,
    DataError,
    RemotePath,
    StorageError,
    delete_temporary,
    is_local,
    is_temporary,
    join,
    leased,
    list_names,
    make_folder,
    read_bytes,
    write_bytes,
)
from rayface.values import shown

Result = TypeVar("Result")


def changed_name(before: Mapping[str, object], job: Mapping[str, object]) -> str | None:
    """Return the first name whose value differs in two jobs, also one that only one of them has."""
    return next((name for name in [*job, *before] if before.get(name) != job.get(name)), None)


@contextmanager
def exclusive_job_folder(
    root: str,
    job: Mapping[str, object],
    job_file: str,
    *,
    key: str,
    beside: Collection[str] = (),
    changed: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None] = changed_name,
    results: Collection[str] = (),
) -> Iterator[None]:
    """Own the output folder of a job inside the context: create it, or resume the same job in it.

    Args:
        root: local folder, which is locked, or URI, which is leased.
        job: values that a resume must not change; JSON types, stored in `job_file`.
        key: config key that names the folder, for messages.
        beside: names of files and folders that a new job may find in it.
        changed: returns the first name whose value differs in the stored job and in this one.
        results: files of results; while none of them exists, another job may take the folder over. Empty: never.

    Raises:
        DataError: the folder holds another job, a corrupt job file or foreign files, or another process owns it.
    """
    make_folder(root)
    job = masked(json.loads(json.dumps(dict(job))))
    name = f"{key}: {root}"
    with exclusive_folder(Path(root), name) if is_local(root) else leased(RemotePath(root), name):
        names = _names(root, beside)
        if job_file not in names:
            require_empty(root, key=key, beside=beside)
        found = sorted(names & set(results))
        is_taken_over = not names or (results and not found)
        before = job if is_taken_over else _stored_job(root, job_file, key)
        if differing := changed(before, job):
            raise DataError(
                f"{key}: {root}: was started {_difference(differing, before, job)}choose another directory"
                + (f", or delete {', '.join(found)} in it" if found else "")
            )
        delete_unfinished(root, beside)
        if is_taken_over or any(before.get(name) != value for name, value in job.items()):
            write_bytes(join(root, job_file), (json.dumps(job, indent=1) + "\n").encode())
        yield
        with suppress(OSError, DataError, StorageError):  # the job has its result
            delete_unfinished(root, beside)  # of workers that were killed while others went on


def _difference(name: str, before: Mapping[str, object], job: Mapping[str, object], group: str = "") -> str:
    """Return how a value of two jobs differs, and the remedy where one of them lacks it.

    Values that are not set are left out of many jobs, so one that a version of rayface does not know is a difference.

    Args:
        group: names of the groups that `name` is in, each with its dot.
    """
    old, new = before.get(name), job.get(name)
    if isinstance(old, Mapping) and isinstance(new, Mapping) and (inner := changed_name(old, new)):
        return _difference(inner, old, new, f"{group}{name}.")
    what = f"{group}{name}"
    if name not in job:
        return f"with {what} {old}, which this job lacks: set it, go on with the version that started it, or "
    if name not in before:
        return f"without {what}, this job has {new}: unset it, go on with the version that started it, or "
    return f"with {what} {old}, this job has {new}: "


def _stored_job(root: str, job_file: str, key: str) -> dict[str, object]:
    text = read_bytes(join(root, job_file))
    try:
        job = json.loads(text)
    except ValueError:
        job = None
    if not isinstance(job, dict):
        raise DataError(
            f"{key}: {root}: {job_file}: {shown(text.decode(errors='replace'))}: must be a JSON object: "
            "choose another directory, or delete this one"
        )
    return job


def read_job_result(
    path: AnyPath, parse: Callable[[Any], Result], is_complete: Callable[[Result], bool]
) -> Result | None:
    """Return the result that a job wrote as JSON, or None if there is no file or the job's output is not complete.

    Raises:
        DataError: it is corrupt; one line.
    """
    if not path.exists():
        return None
    try:
        result = parse(json.loads(path.read_text()))
        return result if is_complete(result) else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is corrupt ({type(error).__name__}: {error}): delete it and run again") from None


def delete_unfinished(root: str, beside: Collection[str] = ()) -> None:
    """Delete what killed writers left unfinished in a job's folder, which the caller owns; not in those `beside`."""
    if is_local(root):
        for folder in _own_folders(Path(root), beside):
            delete_temporary(folder)
    else:
        for name in filter(is_temporary, list_names(root)):
            RemotePath(join(root, name)).unlink(missing_ok=True)


def require_empty(root: str, *, key: str, beside: Collection[str] = ()) -> None:
    """Refuse an output folder that holds files of another job; see `exclusive_job_folder`.

    Raises:
        DataError: one line.
    """
    if names := _names(root, beside):
        raise DataError(f"{key}: {root}: is not empty ({min(names)}): choose another directory")


def _own_folders(root: Path, beside: Collection[str]) -> Iterator[Path]:
    """Yield a job's folder and those in it, but not folders of other jobs."""
    yield root
    for folder in (path for path in root.iterdir() if path.is_dir() and not path.is_symlink()):
        if folder.name not in beside and not (folder / LOCK).exists():
            yield folder


def _names(root: str, beside: Collection[str]) -> set[str]:
    return {name for name in list_names(root) if not is_temporary(name)} - {LOCK, LEASE, *beside}
