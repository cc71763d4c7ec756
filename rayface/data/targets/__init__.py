"""Registry of formats that `rayface convert --to` writes; a plugin adds to TARGETS."""

from collections.abc import Callable

from rayface.data.dataset import Dataset
from rayface.data.targets.bin import write_bin
from rayface.data.targets.folder import write_folder
from rayface.data.targets.hub import write_hub
from rayface.data.targets.parquet import write_parquet
from rayface.data.targets.samples import Written
from rayface.plugins import ensure_loaded

__all__ = ["TARGETS", "Written", "target_of"]

Target = Callable[[Dataset, str], Written]
"""Writes a dataset in another format to a new path, a file or a folder."""

TARGETS: dict[str, Target] = {"bin": write_bin, "folder": write_folder, "hub": write_hub, "parquet": write_parquet}


def target_of(kind: str) -> Target:
    """Return a format by its name.

    Raises:
        ValueError: an unknown name; one line.
    """
    ensure_loaded()
    if kind not in TARGETS:
        raise ValueError(
            f"convert.to: {kind!r}: must be one of {', '.join(sorted(TARGETS))}, or registered by a plugin"
        )
    return TARGETS[kind]
