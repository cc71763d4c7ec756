"""Output folders of jobs: new, or of the same job, and of one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from rayface.credentials import masked
from rayface.storage import (
    DataError,
    delete_temporary,
    is_local,
    is_temporary,
    join,
    list_names,
    make_folder,
    read_bytes,
    write_bytes,
)

_LOCK = ".lock"


@contextmanager
def claimed(root: str, job: dict[str, Any], job_file: str, *, beside: Collection[str] = ()) -> Iterator[None]:
    """Make a folder ours, or go on in one that holds the same job; kept from other processes while inside.

    Args:
        root: local folder, which is locked, or URI.
        job: what must be the same, kept in `job_file`; as JSON gives it back.
        beside: names that may be there before.

    Raises:
        DataError: it holds another job or something else, or another process is at work in it.
    """
    make_folder(root)
    job = masked(job)
    with _locked(root):
        names = {name for name in list_names(root) if not is_temporary(name)} - {_LOCK, *beside}
        if names and job_file not in names:
            raise DataError(f"--out: {root}: is not empty ({min(names)}): choose another directory")
        before = json.loads(read_bytes(join(root, job_file))) if names else job
        for key, value in job.items():
            if before.get(key) != value:
                raise DataError(
                    f"--out: {root}: was begun with {key} {before.get(key)}, this is {value}: choose another directory"
                )
        if is_local(root):
            delete_temporary(root)
        write_bytes(join(root, job_file), (json.dumps(job, indent=1) + "\n").encode())
        yield


@contextmanager
def _locked(root: str) -> Iterator[None]:
    if not is_local(root):
        yield
        return
    try:
        lock = os.open(join(root, _LOCK), os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise DataError(f"--out: {root}: cannot be written: {error.strerror}: choose another directory") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise DataError(f"--out: {root}: another process is at work in it: wait for it, or stop it first") from None
    except OSError:
        pass  # a disk without locks
    try:
        yield
    finally:
        os.close(lock)
