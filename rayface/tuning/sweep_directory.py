"""The directory of a sweep: which one it gets or goes on in, and what is kept there besides trials and results."""

import contextlib
import fcntl
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from rayface.config import Config
from rayface.files import write_text
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
        return spec, base, _numbered(file.stem)
    folder = on_disk(spec.sweep.output, "sweep.output")
    if (folder / SPEC).exists() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"sweep.output: {folder}: holds a sweep: go on with --resume, or choose another directory")
    return spec, base, folder


def newest(name: str) -> Path | None:
    """The last sweep of a file's name under sweeps/."""
    return max(_existing(name).items(), default=(0, None))[1]


def run_of(sweep: Path, number: int) -> Path:
    """The run directory of a trial, in that of its sweep."""
    return sweep / "trials" / f"{number:04d}"


def core_set_of(run: Path) -> Path:
    """What the prune stage of a trial leaves, beside its run directory."""
    return run.with_name(f"{run.name}_core_set")


def _existing(name: str) -> dict[int, Path]:
    found = {}
    for path in Path("sweeps").absolute().glob(f"{name}-*"):
        if match := re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name):
            found[int(match[1])] = path
    return found


def _numbered(name: str) -> Path:
    return Path("sweeps").absolute() / f"{name}-{max(_existing(name), default=0) + 1:03d}"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The directory, made if need be, and kept from other drivers while inside."""
    try:
        (folder / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"sweep.output: {folder}: cannot be written: {error.strerror}: choose another") from error
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"sweep.output: {folder}: a sweep is at work in it: wait for it, or stop it") from error
        except OSError:
            pass  # a disk without locks
        yield


def study_name(folder: Path, resume: bool) -> str:
    """Of this sweep alone, wherever its directory is moved to."""
    path = folder / "study_name"
    if not resume:
        write_text(path, f"{folder.name}-{uuid.uuid4().hex[:12]}")
    return path.read_text()
