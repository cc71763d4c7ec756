"""The directory of a sweep: its path and its files."""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayface import elapsed
from rayface.config import Config
from rayface.files import exclusive_folder, next_numbered_folder, numbered_folders, write_json, write_text
from rayface.storage import on_disk
from rayface.training.run_directory import RunDirectory
from rayface.tuning import spec as specs
from rayface.tuning.spec import Spec

SPEC = "sweep.yaml"
_RESULT = "result.json"
_TRIALS = "trials"


def new_sweep(file: Path, overrides: Sequence[str], preset: str | None) -> tuple[Spec, Config, Path]:
    """Return the spec of a new sweep, the base config of its trials, and its directory.

    Raises:
        ValueError: bad input; one line.
    """
    spec, base = specs.load(file, overrides, preset)
    if spec.sweep.output is None:
        return spec, base, next_numbered_folder(_root(), file.stem)
    folder = on_disk(spec.sweep.output, "sweep.output")
    if (folder / SPEC).exists() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"sweep.output: {folder}: holds a sweep: resume it with --resume, or choose another directory")
    return spec, base, folder


def newest(name: str) -> Path | None:
    """Return the newest sweep of this name under sweeps/."""
    return max(numbered_folders(_root(), name).items(), default=(0, None))[1]


def core_set_of(run: Path) -> Path:
    """Return the core set of a trial's prune stage; it is beside the trial's run directory."""
    return run.with_name(f"{run.name}_core_set")


def trial_name(run: Path) -> str:
    """Return the name of a trial in MLflow, by its run directory."""
    return f"{run.parent.parent.name} trial {run.name.lstrip('0') or 0}"


def _root() -> Path:
    return Path("sweeps").absolute()


@dataclass(frozen=True)
class SweepDirectory:
    """The files of a sweep."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The name of the sweep, also in MLflow."""
        return self.path.name

    @property
    def spec(self) -> Path:
        """The resolved sweep file, from which the sweep is resumed."""
        return self.path / SPEC

    @property
    def report(self) -> Path:
        """The report, one HTML page."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """The folder of the report's figures."""
        return self.path / "plots"

    @property
    def best_config(self) -> Path:
        """The config of the best trial."""
        return self.path / "best.yaml"

    @property
    def ray_storage(self) -> Path:
        """The folder of Ray Tune's own state."""
        return self.path / "ray"

    @property
    def storage(self) -> str:
        """The default Optuna storage."""
        return f"sqlite:///{self.path / 'study.db'}"

    def run(self, number: int) -> RunDirectory:
        """Return the run directory of a trial."""
        return RunDirectory(self.path / _TRIALS / f"{number:04d}")

    def core_set(self, number: int) -> Path:
        """Return the core set of a trial."""
        return core_set_of(self.run(number).working)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Own the directory, created if missing, inside the context."""
        with exclusive_folder(self.path, f"sweep.output: {self}"):
            (self.path / _TRIALS).mkdir(exist_ok=True)
            yield

    def session(self) -> contextlib.AbstractContextManager[Callable[[], float]]:
        """Measure a session of the sweep; see `elapsed.session`."""
        return elapsed.session(self.path)

    def study_name(self, *, resume: bool) -> str:
        """Return the name of the study: unique to this sweep, and kept when its directory is moved."""
        path = self.path / "study_name"
        if not resume:
            write_text(path, f"{self.name}-{uuid.uuid4().hex[:12]}")
        return path.read_text()

    def write_results(self, result: Mapping[str, Any], page: str) -> None:
        """Write the report and the result."""
        write_text(self.report, page)
        write_json(self.path / _RESULT, result)

    def artifacts(self) -> list[tuple[Path, str]]:
        """Return the files of a finished sweep to log to MLflow, each with its artifact folder."""
        files = [path for path in (self.best_config, self.report, self.path / _RESULT) if path.exists()]
        return [(path, "") for path in files] + [(path, "plots") for path in sorted(self.plots.glob("*"))]
