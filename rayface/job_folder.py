"""Exclusive ownership of a job's output folder: create it, or resume the same job in it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rayface.credentials import masked
from rayface.files import LOCK, exclusive_folder
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


@contextmanager
def exclusive_job_folder(
    root: str, job: Mapping[str, object], job_file: str, *, beside: Collection[str] = ()
) -> Iterator[None]:
    """Own the output folder of a job while inside; one that is not new must hold the same job.

    Args:
        root: local folder, which is locked, or URI.
        job: what must be the same, kept in `job_file`; as JSON gives it back.
        beside: names that may be there before.

    Raises:
        DataError: it holds another job or something else, or another process is at work in it.
    """
    make_folder(root)
    job = masked(dict(job))
    with exclusive_folder(Path(root), f"--out: {root}") if is_local(root) else nullcontext():
        names = {name for name in list_names(root) if not is_temporary(name)} - {LOCK, *beside}
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
