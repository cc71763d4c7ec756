"""The journals of a run: JSON lines on disk, one writer each."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rayface.credentials import masked

Status = Literal["FINISHED", "FAILED", "KILLED"]
Record = Mapping[str, Any]
"""A line of a journal: its kind, its time, and the values of the kind."""
PREFLIGHT = "preflight"  # tag: what the workers found of each other before the first step
PREFLIGHT_WARNINGS = "preflight.warnings"  # tag: what of it should be better
RECOVERY = "recovery"  # tag: why training did not go straight on, and from where it does
CHECKPOINT_FAULTS = "checkpoint_faults"  # tag: damaged checkpoints that a resumed run did not take


class Journal:
    """An append-only file of JSON lines: what one process of a run logs, in order.

    A record is one line, written with one call, so that a crash loses at most the line being written. A
    journal that is opened again goes on at its end: a torn last line is cut off, and a metric at a step that
    it already holds is not written a second time, so that a resumed run may replay its steps. One process
    writes to a journal at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._last_steps: dict[str, int] = {}
        whole = 0
        if self.path.exists():
            for record, end in read_records(self.path, 0):
                whole = end
                if record and record["kind"] == "metrics":
                    self._last_steps.update(dict.fromkeys(record["values"], record["step"]))
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, whole)

    @property
    def last_step(self) -> int:
        """The highest step of any metric in this journal, -1 if there is none."""
        return max(self._last_steps.values(), default=-1)

    def params(self, values: Mapping[str, object]) -> None:
        """Log settings of the run; MLflow keeps the first value of a name, a later one becomes a tag."""
        self._write("params", values={key: str(value) for key, value in values.items()})

    def tags(self, values: Mapping[str, object]) -> None:
        """Log labels of the run; a later value of a name replaces the earlier one."""
        self._write("tags", values={key: str(value) for key, value in values.items()})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers at `step`; a name that was already logged at this or a later step is left out."""
        new = {key: float(value) for key, value in values.items() if step > self._last_steps.get(key, -1)}
        if new:
            # JSON has no word for NaN and infinity; float() reads these back
            written = {key: value if math.isfinite(value) else str(value) for key, value in new.items()}
            self._write("metrics", step=int(step), values=written)
            self._last_steps.update(dict.fromkeys(new, int(step)))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Ask for a file or a folder to be sent; its content is that of the time of sending.

        Args:
            path: the file; one inside the run directory (the parent of the journal's folder) is remembered
                relative to it, so that the run can be moved.
            folder: where it goes among the run's artifacts, "" for the top.
        """
        path, run = Path(path).absolute(), self.path.parent.absolute().parent
        name = os.path.relpath(path, self.path.parent) if path.is_relative_to(run) else str(path)
        self._write("artifact", path=name, folder=folder)

    def phase(self, name: str, event: str, **numbers: float | int | str) -> None:
        """Log the start or the end of a phase of the job; it stays in the journal, MLflow does not see it."""
        self._write("phase", name=name, event=event, **numbers)

    def finish(self, status: Status) -> None:
        """Say how the run ended; MLflow learns it after everything else."""
        self._write("finish", status=status)
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; the journal can be opened again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, kind: str, **values: object) -> None:
        if kind in ("params", "tags") and not values["values"]:
            return
        line = json.dumps(masked({"kind": kind, "time": time.time(), **values}), allow_nan=False)
        os.write(self._file, line.encode() + b"\n")


def read_records(path: Path, offset: int) -> Iterator[tuple[Record | None, int]]:
    """Yield every whole line from byte `offset` on (None if it is no record), and where the next begins."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # it is being written
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield record if isinstance(record, dict) and "kind" in record else None, offset


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Read the metrics of all journals in `folder`.

    Returns:
        for every name its points (step, value, unix seconds), by step.
    """
    metrics: dict[str, list[tuple[int, float, float]]] = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        for record, _ in read_records(path, 0):
            if record and record["kind"] == "metrics":
                for key, value in record["values"].items():
                    metrics.setdefault(key, []).append((record["step"], float(value), record["time"]))
    return {key: sorted(points) for key, points in metrics.items()}
