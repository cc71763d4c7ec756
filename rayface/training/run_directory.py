"""The directory of a training run; only this module, `run_messages` and `run_results` know its files."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rayface import config as configs
from rayface import elapsed
from rayface.config import Config
from rayface.files import LOCK, write_file, write_text
from rayface.models.model_card import CARD
from rayface.models.model_info import DESCRIPTION, WEIGHTS
from rayface.models.run_files import CHECKPOINTS, CONFIG, PAIR_SCORES
from rayface.storage import LEASE, AnyPath, FolderMirror, RemotePath, Segments, fetched_journals, local_copy, uri_of
from rayface.tracking import Journal, read_metrics
from rayface.tracking.delivered import delivered_run_id
from rayface.tracking.journal import JournalTail, StoredJournalTail
from rayface.tracking.origin import job_name
from rayface.tracking.spool import JOURNAL, READER_FOLDERS
from rayface.training.run_results import DATA, EVALUATION, RESULT, RunResults

if TYPE_CHECKING:
    import pandas as pd

_REPORT = "report.html"
_PLOTS = "plots"
_FAULTS = "faults.log"
_CONTROLLER_FAULTS = "faults-controller.log"
CONTROLLER = "controller"
"""The writer of what Ray Train's controller appends."""
_WORKER = "rank0"
_WORKER_JOURNAL = f"{JOURNAL}/{_WORKER}.jsonl"
_FOLDERS = (JOURNAL, _PLOTS, *READER_FOLDERS)
_SESSIONS = "sessions.json"


@dataclass(frozen=True)
class RunDirectory(RunResults):
    """Files of a training run, and its messages and results; only files that libraries open have a path."""

    # Files that other modules or libraries write and read

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    @property
    def title(self) -> str:
        """Its name beside other runs of a project, in MLflow and reports: the path in the project, or the name."""
        return self.name if isinstance(self.path, RemotePath) else job_name(self.path)

    @property
    def config_file(self) -> Path:
        """The resolved config as YAML, on this machine."""
        return self._fetched(CONFIG)

    @property
    def checkpoints(self) -> AnyPath:
        """The folder of the checkpoints, one folder per checkpoint."""
        return self.path / CHECKPOINTS

    @property
    def model(self) -> AnyPath:
        """The weights of the trained model."""
        return self.path / WEIGHTS

    @property
    def report(self) -> AnyPath:
        """The report, one HTML page."""
        return self.path / _REPORT

    @property
    def plots(self) -> Path:
        """The folder of the report's figures, on this machine."""
        return self.working / _PLOTS

    @property
    def journals(self) -> Path:
        """The folder of the journals on this machine, which is delivered to MLflow."""
        return self.working / JOURNAL

    @property
    def worker_journal_file(self) -> Path:
        """The journal of rank 0, for readers that follow it."""
        return self.journals / f"{_WORKER}.jsonl"

    @property
    def ray_storage(self) -> Path:
        """The folder of Ray Train's own state, on the driver's machine if the directory is in an object store."""
        return self.working / "ray"

    @property
    def preflight(self) -> AnyPath:
        """The scratch folder of the pre-flight check of the shared storage."""
        return self.path / ".preflight"

    def bytes_being_written(self) -> int:
        """Return a number that grows while the current checkpoint is written, on a disk its bytes so far."""
        if isinstance(self.checkpoints, RemotePath):
            from rayface.models.store_files import bytes_written  # imports PyTorch

            return bytes_written()
        total = 0
        with contextlib.suppress(OSError):  # the folder is renamed when the checkpoint is complete
            for path in self.checkpoints.glob(".step_*.tmp/*"):
                total += path.stat().st_size
        return total

    def artifacts(self) -> list[tuple[Path, str]]:
        """Return the files of a finished run to log to MLflow, each with its artifact folder; not the weights."""
        names = filter(self._exists, (DESCRIPTION, CARD, _REPORT, EVALUATION, PAIR_SCORES, RESULT))
        return [(self._fetched(name), "") for name in names] + [(path, _PLOTS) for path in sorted(self.plots.glob("*"))]

    def model_folder(self) -> Path:
        """Return the local folder with the files of the trained model."""
        weights, *_ = map(self._fetched, (WEIGHTS, DESCRIPTION, CARD))
        return weights.parent

    # Ownership and state

    @contextlib.contextmanager
    def delivering(self) -> Iterator[None]:
        """Deliver journals and figures of a directory in an object store from the working folder inside the context."""
        if isinstance(self.path, Path):
            yield
            return
        if self.writer == "driver" and not (self.path / JOURNAL).exists():  # what is here is of a run that was deleted
            shutil.rmtree(self.working, ignore_errors=True)
        self.make_folder(self.journals)
        if self.writer == "driver":
            with self.mirrored(_FOLDERS, [_SESSIONS], pulled=[_WORKER_JOURNAL]):
                yield
            return
        mirror = FolderMirror(self.working, self.path, only=[JOURNAL, _FAULTS])
        self._worker_segments().restore()
        with self._appending(_FAULTS, mirror), mirror:
            yield
        if mirror.delivered:
            shutil.rmtree(self.working, ignore_errors=True)

    @contextlib.contextmanager
    def synced(self) -> Iterator[Path]:
        """Yield the folder with the journals and all artifacts of the run, fetched from an object store.

        Raises:
            DataError: a driver owns the run in the store.
        """
        remote = isinstance(self.path, RemotePath)  # the working folder of a driver on this machine is in use
        with self.exclusive() if remote else contextlib.nullcontext(), self.delivering():
            self.artifacts()
            if self.has_model():
                self.model_folder()
            yield self.config_file.parent

    def session(self) -> AbstractContextManager[Callable[[], float]]:
        """Measure a session of the run; see `elapsed.session`."""
        return elapsed.session(self.working)

    def seconds(self) -> float:
        """Return the total seconds of all sessions of the run, 0 without any."""
        if isinstance(self.path, Path) or self.working.exists():
            return elapsed.seconds_of(self.working)
        with fetched_journals(self.path / JOURNAL) as folder:
            with contextlib.suppress(FileNotFoundError):
                write_file(folder / _SESSIONS, (self.path / _SESSIONS).read_bytes())
            return elapsed.seconds_of(folder)

    def has_started(self) -> bool:
        """Return whether a run was started here, that is, the config exists."""
        return self._exists(CONFIG)

    def is_unused(self) -> bool:
        """Return whether the directory is empty, or a run was interrupted here before its config was written."""
        own = {LOCK, LEASE, CHECKPOINTS, DATA}
        if self.checkpoints.is_dir() and any(self.checkpoints.iterdir()):
            return False
        return all(path.name in own for path in self.path.iterdir())

    def is_finished(self) -> bool:
        """Return whether the result and the model of the run exist."""
        return self._exists(RESULT) and self.has_model()

    def has_model(self) -> bool:
        """Return whether the weights and the description of the trained model exist."""
        return self._exists(WEIGHTS) and self._exists(DESCRIPTION)

    # Config and data

    def read_config(self) -> Config:
        """Return the config that the run was started with.

        Raises:
            ValueError: this is not a run directory.
        """
        if not self.has_started():
            raise ValueError(f"train.output: {self}: is not a run directory (no {CONFIG}): give the directory of a run")
        return configs.load(file=local_copy(uri_of(self.path / CONFIG)))

    def config_text(self) -> str:
        """Return the config as YAML, "" without one."""
        return (self.path / CONFIG).read_text(encoding="utf-8") if self.has_started() else ""

    def write_config(self, config: Config) -> None:
        """Write the config, without train.output: the directory may be moved."""
        configs.dump(replace(config, train=replace(config.train, output=None)), self.path / CONFIG)

    def write_report(self, page: str) -> None:
        """Write the report."""
        write_text(self.report, page)

    # Journals and faults

    def journal(self, writer: str) -> Journal:
        """Open the journal of one writer, for example "driver" or "sweep"."""
        return Journal(self.journals / f"{writer}.jsonl")

    @contextlib.contextmanager
    def appended(self, writer: str) -> Iterator[Journal]:
        """Yield the journal of one writer of a run that has ended; in an object store it is delivered at the end.

        Raises:
            DataError, StorageError: the object store refuses or does not answer, or a driver owns the run there.
        """
        remote = isinstance(self.path, RemotePath)
        with self.exclusive() if remote else contextlib.nullcontext(), self.delivering():
            journal = self.journal(writer)
            try:
                yield journal
            finally:
                journal.close()

    def worker_journal(self) -> Journal:
        """Open the journal of rank 0."""
        return self.journal(_WORKER)

    def journal_tail(self) -> JournalTail:
        """Return a reader of the journals for a process that writes none: in an object store, of those delivered."""
        if isinstance(self.path, RemotePath):
            return StoredJournalTail(self.path / JOURNAL)
        return JournalTail(self.journals)

    def read_metrics(self) -> dict[str, list[tuple[int, float, float]]]:
        """Return the metrics of all journals; see `tracking.read_metrics`."""
        if isinstance(self.path, Path):
            return read_metrics(self.journals)
        with fetched_journals(self.path / JOURNAL) as folder:
            return read_metrics(folder)

    def to_pandas(self) -> pd.DataFrame:
        """Return the metrics, a row for each step and a column for each metric; NaN where it was not measured."""
        import pandas as pd

        points = {key: dict(point[:2] for point in found) for key, found in self.read_metrics().items()}
        return pd.DataFrame(points).sort_index().rename_axis("step")

    def mlflow_run_id(self) -> str | None:
        """Return the id of the run in MLflow; None until MLflow has answered."""
        return delivered_run_id(self.path / JOURNAL)

    def write_faults(self, lines: Iterable[object]) -> None:
        """Start faults.log, the list of corrupt samples and checkpoints and of restarts."""
        write_text(self.path / _FAULTS, "".join(f"{line}\n" for line in lines))

    def add_faults(self, lines: Iterable[object]) -> None:
        """Append to faults.log; the controller to a file of its own where the directory is in an object store."""
        own = isinstance(self.path, RemotePath) and self.writer == CONTROLLER
        self._append(_CONTROLLER_FAULTS if own else _FAULTS, "".join(f"{line}\n" for line in lines))

    def _worker_segments(self) -> Segments:
        assert isinstance(self.path, RemotePath)
        return Segments(self.worker_journal_file, self.path / _WORKER_JOURNAL)
