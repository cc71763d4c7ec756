"""The directory of a sweep: which one it gets or goes on in, and what is kept there besides trials and results."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from rayface.config import Config
from rayface.files import exclusive_folder, next_numbered_folder, numbered_folders, write_text
from rayface.storage import on_disk
from rayface.tuning import spec as specs
from rayface.tuning.spec import Spec

SPEC = "sweep.yaml"


def new_sweep(file: Path, overrides: Sequence[str], preset: str | None) -> tuple[Spec, Config, Path]:
    """What a new sweep does, the config of all its trials, and the directory that it gets.

    Raises:
        ValueError: bad input; one line.
    """
    spec, base = specs.load(file, overrides, preset)
    if spec.sweep.output is None:
        return spec, base, next_numbered_folder(_root(), file.stem)
    folder = on_disk(spec.sweep.output, "sweep.output")
    if (folder / SPEC).exists() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"sweep.output: {folder}: holds a sweep: go on with --resume, or choose another directory")
    return spec, base, folder


def newest(name: str) -> Path | None:
    """The last sweep of a file's name under sweeps/."""
    return max(numbered_folders(_root(), name).items(), default=(0, None))[1]


def run_of(sweep: Path, number: int) -> Path:
    """The run directory of a trial, in that of its sweep."""
    return sweep / "trials" / f"{number:04d}"


def core_set_of(run: Path) -> Path:
    """What the prune stage of a trial leaves, beside its run directory."""
    return run.with_name(f"{run.name}_core_set")


def _root() -> Path:
    return Path("sweeps").absolute()


@contextlib.contextmanager
def exclusive_sweep_directory(folder: Path) -> Iterator[None]:
    """Own the directory of a sweep, made if missing, while inside."""
    with exclusive_folder(folder, f"sweep.output: {folder}"):
        (folder / "trials").mkdir(exist_ok=True)
        yield


def study_name(folder: Path, resume: bool) -> str:
    """Of this sweep alone, wherever its directory is moved to."""
    path = folder / "study_name"
    if not resume:
        write_text(path, f"{folder.name}-{uuid.uuid4().hex[:12]}")
    return path.read_text()
