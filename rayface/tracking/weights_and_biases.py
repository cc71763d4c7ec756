"""Weights & Biases: the journals of a job as one offline run, which `wandb sync` uploads."""

import os
import re
import shlex
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayface.credentials import mask
from rayface.tracking.delivered import Delivered
from rayface.tracking.journal import Record
from rayface.tracking.reader import Destination, JournalReader

FOLDER = "wandb"  # the name is Weights & Biases'


class WeightsAndBiases(JournalReader):
    """Reader that writes an offline run of Weights & Biases, in the folder `wandb` beside the spool.

    Its file cannot be continued. If there is more to write than an earlier session wrote, the run is written again from
    the start of the journals, under the same id, and the earlier one is deleted: every record is in it once.
    """

    suffix = "-wandb"

    def __init__(self, folder: Path, *, project: str, name: str) -> None:
        self.root = Path(folder).absolute().parent
        self._project, self._name = project, name
        super().__init__(folder, place=f"Weights & Biases' {self.root / FOLDER}", target=project)

    @property
    def hint(self) -> str:
        """The command that uploads the run."""
        folder = shlex.quote(mask(os.path.relpath(self.root / FOLDER)))
        return f"wandb sync {folder}/offline-run-*-{self._progress.run_id}"

    def _prepare(self) -> Delivered:
        state = self._load_progress()
        sizes = {path.name: path.stat().st_size for path in self.folder.glob("*.jsonl")}
        return state if state.ended and sizes == state.cursors else self._new(state)

    def _start_over(self, journals: Sequence[str]) -> None:
        self._progress, self._destination = self._new(self._progress), None

    def _new(self, state: Delivered) -> Delivered:
        if not re.fullmatch(r"\w+", state.run_id or "", re.ASCII):  # else of a file from outside: a path to delete
            state.run_id = None
        if state.run_id is not None:
            for folder in (self.root / FOLDER).glob(f"offline-run-*-{state.run_id}"):
                shutil.rmtree(folder)
        return Delivered(target=state.target, run_id=state.run_id or uuid.uuid4().hex[:8])

    def _connect(self) -> Destination:
        return _OfflineRun(self.root, self._project, self._name, str(self._progress.run_id))


class _OfflineRun(Destination):
    def __init__(self, root: Path, project: str, name: str, run_id: str) -> None:
        import wandb  # in the delivery's thread: it takes seconds

        self._wandb, self._root = wandb, root
        self._project, self._name, self._id = project, name, run_id
        self._run = self._begin()

    def _begin(self) -> Any:
        # A run of its own beside those of the process; nothing on the terminal, nothing but what the journals hold.
        settings = self._wandb.Settings(
            mode="offline",
            reinit="create_new",
            silent=True,
            console="off",
            x_disable_stats=True,
            x_disable_meta=True,
            disable_git=True,
        )
        run = self._wandb.init(project=self._project, name=self._name, id=self._id, dir=self._root, settings=settings)
        run.define_metric("*", step_metric="step")  # records of several journals are not in the order of their steps
        return run

    def log(self, records: Sequence[Record]) -> None:
        """Write metrics as rows of the history, and all else into the run's config."""
        for record in records:
            if record["kind"] == "metrics":
                values = {name: float(value) for name, value in record["values"].items()}
                self._run.log({**values, "step": record["step"], "_timestamp": record["time"]})
            elif record["kind"] != "dataset":  # params hold its facts
                self._run.config.update(dict(record["values"]), allow_val_change=True)

    def end(self, status: str, seconds: float) -> None:
        """Finish the run; what is not FINISHED has failed."""
        self._run.finish(exit_code=int(status != "FINISHED"))

    def reopen(self) -> None:
        """Go on in another file of the run."""
        self._run = self._begin()
