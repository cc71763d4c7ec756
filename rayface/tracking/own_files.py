"""Which files a record may name: those of its own run, since a journal may come with a run of somebody else."""

import os
from pathlib import Path

from rayface.storage import RemotePath, is_local


def is_own(path: str, spool: Path, output: str | None) -> bool:
    """Return whether a file, or every file of a folder, is in the directory of its run.

    Args:
        path: as a record names it: relative to the spool, or a URI.
        spool: folder of the journals, in the run directory.
        output: URI of the run directory, or of the job's output, in an object store; URIs below it are own, too.
    """
    if is_local(path):
        return is_inside(spool / path, spool.parent)
    return output is not None and not is_local(output) and _is_below(path, output)


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a file, or every file of a folder, is in another folder, links followed."""
    real = os.path.realpath(folder)
    return all(Path(os.path.realpath(each)).is_relative_to(real) for each in (path, *path.rglob("*")))


def _is_below(uri: str, folder: str) -> bool:
    base, _, query = str(RemotePath(folder)).partition("?")  # a query can name another host
    place, _, other = uri.partition("?")
    name = place.removeprefix(f"{base}/")
    return query == other and name != place and not {"", ".", ".."} & set(name.split("/"))
