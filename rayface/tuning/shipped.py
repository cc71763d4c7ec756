"""Sweep files that come with rayface: tune_configs/ of the repository, which a wheel carries in the package."""

import os
from pathlib import Path

from rayface.storage import local_copy

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = (_PACKAGE / "tune_configs", _PACKAGE.parent / "tune_configs")


def shipped_names() -> list[str]:
    """Return the names of the sweep files."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.yaml")})


def shipped_file(file: Path) -> Path | None:
    """Return the shipped file that is meant by NAME or tune_configs/NAME.yaml; None if there is none."""
    if str(file.parent / file.stem) not in (file.stem, f"tune_configs/{file.stem}"):
        return None
    return next((path for path in (folder / f"{file.stem}.yaml" for folder in _FOLDERS) if os.path.isfile(path)), None)


def sweep_file(file: str | Path) -> Path:
    """Return the file, of a URI a copy; if there is none, the shipped one meant by NAME or tune_configs/NAME.yaml.

    Raises:
        ValueError: neither exists; one line.
        StorageError: the object store of a URI does not answer.
    """
    file = local_copy(file)
    if file.is_file():
        return file
    if shipped := shipped_file(file):
        return shipped
    raise ValueError(f"FILE: {file}: no such file: give a sweep file, or one of {', '.join(shipped_names())}")
