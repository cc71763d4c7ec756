"""Version of rayface and the commit that it comes from, as recorded in its files and in tracked runs."""

import functools
import os

VERSION = "0.1.0"
COMMIT_VARIABLE = "RAYFACE_COMMIT"  # set by `rayface submit`, and in images that hold no clone


@functools.cache
def commit() -> str:
    """Return the commit of this package, with "-dirty" if its clone has local changes; "unknown" if nothing tells it.

    The commit of the working directory is another project's: only the package's own origin counts.
    """
    clone = os.path.dirname(os.path.dirname(__file__))
    return os.environ.get(COMMIT_VARIABLE) or _commit_of_clone(clone) or _commit_of_installation()


def _commit_of_clone(root: str) -> str:
    import subprocess  # as below, here: with them, the scripts that start workers took 40 ms more

    if not os.path.exists(os.path.join(root, ".git")):  # a folder inside another project's repository has none
        return ""
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _commit_of_installation() -> str:
    """Return the commit that pip installed from a git URL, or that of the clone that it installed from a folder."""
    import importlib.metadata
    import json

    try:
        origin = json.loads(importlib.metadata.distribution("rayface").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return "unknown"
    known = str(origin.get("vcs_info", {}).get("commit_id", ""))
    folder = str(origin.get("url", "")).removeprefix("file://")
    return known or (_commit_of_clone(folder) if "dir_info" in origin else "") or "unknown"
