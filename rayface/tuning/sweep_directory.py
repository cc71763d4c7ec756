"""The directory of a sweep: its path and its files."""

import contextlib
import logging
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rayface import elapsed
from rayface.config import Config
from rayface.files import next_numbered_folder, numbered_folders, write_file, write_json, write_text
from rayface.sqlite_uri import sqlite_uri
from rayface.storage import AnyPath, DataError, StorageError, path_of
from rayface.tracking.spool import JOURNAL, READER_FOLDERS
from rayface.training.run_directory import RunDirectory
from rayface.training.run_store import RunStore
from rayface.tuning import spec as specs
from rayface.tuning.spec import Spec

SPEC = "sweep.yaml"
_RESULT = "result.json"
_TRIALS = "trials"
_STUDY = "study.db"
_PLOTS = "plots"
logger = logging.getLogger(__name__)


def new_sweep(file: Path, overrides: Sequence[str], preset: str | None) -> tuple[Spec, Config, AnyPath]:
    """Return the spec of a new sweep, the base config of its trials, and its directory.

    Raises:
        ValueError: bad input; one line.
    """
    spec, base = specs.load(file, overrides, preset)
    if spec.sweep.output is None:
        last = _newest(_numbered(file.stem))
        return spec, base, last if last and _was_left(last) else next_numbered_folder(_root(), file.stem)
    folder = path_of(spec.sweep.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"sweep.output: {folder}: is a file: choose another directory")
    if (folder / SPEC).exists():
        if SweepDirectory(folder).is_owned():
            raise ValueError(f"sweep.output: {folder}: another process runs a sweep there: choose another directory")
        raise ValueError(f"sweep.output: {folder}: holds a sweep: resume it with --resume, or choose another directory")
    if SweepDirectory(folder).has_trials():  # their runs would be resumed with other values
        raise ValueError(f"sweep.output: {folder}: holds trials without their {SPEC}: choose another directory")
    return spec, base, folder


def newest(name: str) -> Path | None:
    """Return the newest sweep of this name under sweeps/; a folder without sweep.yaml is none."""
    return _newest({number: path for number, path in _numbered(name).items() if (path / SPEC).is_file()})


def _newest(folders: Mapping[int, Path]) -> Path | None:
    return folders[max(folders)] if folders else None


def _numbered(name: str) -> dict[int, Path]:
    return numbered_folders(_root(), name)


def _was_left(folder: Path) -> bool:
    """Return whether a sweep was killed in this folder before its sweep.yaml was written, so that none began."""
    sweep = SweepDirectory(folder)
    begun = (folder / SPEC).exists() or sweep.has_trials()
    return (folder / _TRIALS).is_dir() and not begun and not sweep.is_owned()


def core_set_of(run: AnyPath) -> AnyPath:
    """Return the core set of a trial's prune stage; it is beside the trial's run directory."""
    return run.with_name(f"{run.name}_core_set")


def trial_name(run: AnyPath) -> str:
    """Return the name of a trial in MLflow, by its run directory."""
    return f"{run.parent.parent.name} trial {run.name.lstrip('0') or 0}"


def _root() -> Path:
    return Path("sweeps").absolute()


@dataclass(frozen=True)
class SweepDirectory(RunStore):
    """The files of a sweep: on a disk, or in an object store and, while it runs, in a working folder of its driver."""

    key: ClassVar[str] = "sweep.output"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The name of the sweep, also in MLflow."""
        return self.path.name

    @property
    def spec(self) -> AnyPath:
        """The resolved sweep file, from which the sweep is resumed."""
        return self.path / SPEC

    @property
    def report(self) -> AnyPath:
        """The report, one HTML page."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """The folder of the report's figures, on this machine."""
        return self.working / _PLOTS

    @property
    def best_config(self) -> AnyPath:
        """The config of the best trial."""
        return self.path / "best.yaml"

    @property
    def ray_storage(self) -> Path:
        """The folder of Ray Tune's own state, on this machine."""
        return self.working / "ray"

    @property
    def storage(self) -> str:
        """The default Optuna storage, on this machine."""
        return sqlite_uri(self.working / _STUDY)

    def run(self, number: int) -> RunDirectory:
        """Return the run directory of a trial."""
        return RunDirectory(self.path / _TRIALS / f"{number:04d}")

    def has_trials(self) -> bool:
        """Return whether a trial has begun."""
        trials = self.path / _TRIALS
        return trials.is_dir() and any(trials.iterdir())

    def core_set(self, number: int) -> AnyPath:
        """Return the core set of a trial."""
        return core_set_of(self.run(number).path)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Own the directory, created if missing, inside the context."""
        with super().exclusive():
            (self.path / _TRIALS).mkdir(exist_ok=True)
            yield

    @contextlib.contextmanager
    def delivering(self, *, resume: bool) -> Iterator[None]:
        """Deliver journals and figures of a directory in an object store inside the context; see also `store_study`.

        Args:
            resume: first fetch them and the study; else what is here is of a sweep that was deleted.
        """
        if isinstance(self.path, Path):
            yield
            return
        if not resume:
            shutil.rmtree(self.working, ignore_errors=True)
        with self.mirrored((JOURNAL, _PLOTS, *READER_FOLDERS), ["sessions.json"]):
            if resume:
                self._fetched(_STUDY)
            try:
                yield
            finally:
                self.store_study(required=False)

    @contextlib.contextmanager
    def synced(self) -> Iterator[Path]:
        """Yield the folder with the journals of an ended sweep in an object store, which are delivered at the end.

        Raises:
            DataError: a driver owns the sweep.
        """
        with self.exclusive(), self.delivering(resume=True):
            yield self.working

    def store_study(self, *, required: bool = True) -> None:
        """Store the study of a directory in an object store, if it is in the default storage.

        Args:
            required: a trial must not begin before: a resume from another machine would draw other values under its
                number. Else a failure is logged, and what was added is stored the next time.

        Raises:
            DataError, StorageError: the object store refuses or does not answer.
        """
        study = self.working / _STUDY
        if isinstance(self.path, Path) or not study.exists() or self.is_lost():
            return
        try:
            write_file(self.path / _STUDY, _snapshot(study))
        except (DataError, StorageError) as error:
            if required:
                raise
            logger.warning("%s: the study is not stored yet: %s", self, error)

    def session(self) -> contextlib.AbstractContextManager[Callable[[], float]]:
        """Measure a session of the sweep; see `elapsed.session`."""
        return elapsed.session(self.working)

    def study_name(self, *, resume: bool) -> str:
        """Return the name of the study: unique to this sweep, and kept when its directory is moved.

        A sweep that was killed before its sweep.yaml was written leaves its study to the next one in its directory.
        """
        path = self.path / "study_name"
        if not resume and not path.exists():
            write_text(path, f"{self.name}-{uuid.uuid4().hex[:12]}")
        return path.read_text()

    def write_results(self, result: Mapping[str, object], page: str) -> None:
        """Write the report and the result."""
        write_text(self.report, page)
        write_json(self.path / _RESULT, result)

    def artifacts(self) -> list[tuple[AnyPath, str]]:
        """Return the files of a finished sweep to log to MLflow, each with its artifact folder."""
        files = [path for path in (self.best_config, self.report, self.path / _RESULT) if path.exists()]
        return [(path, "") for path in files] + [(path, _PLOTS) for path in sorted(self.plots.glob("*"))]


def _snapshot(database: Path) -> bytes:
    """Return a copy of a SQLite database that is whole, whatever is written meanwhile."""
    copy = sqlite3.connect(":memory:")
    with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(copy):
        source.backup(copy)
        return copy.serialize()
