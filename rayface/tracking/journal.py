"""Journals of a run: JSON lines on disk, one writer per file."""

import heapq
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from rayface.credentials import masked
from rayface.files import open_to_append
from rayface.storage import AnyPath, RemotePath, Segments

Status = Literal["FINISHED", "FAILED", "KILLED"]
Record = Mapping[str, Any]
"""A line of a journal: its kind, its time, and the fields of that kind."""
PREFLIGHT = "preflight"  # tag: results of the checks between workers before the first step
PREFLIGHT_WARNINGS = "preflight.warnings"  # tag: pre-flight results below expectation
RECOVERY = "recovery"  # tag: why training was interrupted, and the step from which it continues
CHECKPOINT_FAULTS = "checkpoint_faults"  # tag: corrupt checkpoints that a resume skipped


class Journal:
    """Append-only file of JSON lines with the records of one process of a run, in order.

    A record is one line, written whole or not at all; a crash loses at most the line being written. A journal that is
    opened again is appended to: an incomplete last line is cut off, and a metric at a step that the journal already
    holds is not written again, so a resumed run may replay its steps. Only one process at a time may write to it.
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
        self._file = open_to_append(self.path)
        os.ftruncate(self._file, whole)

    @property
    def last_step(self) -> int:
        """The highest step of any metric in this journal; -1 if there is none."""
        return max(self._last_steps.values(), default=-1)

    def params(self, values: Mapping[str, object]) -> None:
        """Log params of the run; MLflow keeps the first value of a name, a later one becomes a tag."""
        self._write("params", values={key: str(value) for key, value in values.items()})

    def tags(self, values: Mapping[str, object]) -> None:
        """Log tags of the run; a later value of a name replaces the earlier one."""
        self._write("tags", values={key: str(value) for key, value in values.items()})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at `step`; names that were already logged at this or a later step are skipped."""
        new = {key: float(value) for key, value in values.items() if step > self._last_steps.get(key, -1)}
        if new:
            # JSON has no NaN and infinity; float() parses these strings.
            written = {key: value if math.isfinite(value) else str(value) for key, value in new.items()}
            self._write("metrics", step=int(step), values=written)
            self._last_steps.update(dict.fromkeys(new, int(step)))

    def dataset(self, name: str, *, digest: str, source: str, context: str, **counts: int) -> None:
        """Log a dataset that the job read.

        Args:
            source: its folder or URI.
            context: what it was read for, such as "training".
            counts: such as num_images.
        """
        values = {"name": name, "digest": digest, "source": source, "context": context}
        self._write("dataset", values={**values, **{key: str(value) for key, value in counts.items()}})

    def model(self, folder: Path) -> None:
        """Log the model in a run directory; it is read when it is sent."""
        self._write("model", path=self._relative(folder))

    def artifact(self, path: AnyPath, folder: str = "") -> None:
        """Log a file, or a folder of a disk, as an artifact; its content is read when it is sent.

        Args:
            path: the file or folder, in the run directory (the parent of the journal's folder) or the job's output in
                an object store: others are not sent. Of an object store, its URI is stored, without credentials, else
                a relative path, so that the run can be moved.
            folder: artifact folder of the run, "" for the top level.
        """
        shown = str(path) if isinstance(path, RemotePath) else self._relative(path)
        self._write("artifact", path=shown, folder=folder)

    def _relative(self, path: Path) -> str:
        path, run = Path(path).absolute(), self.path.parent.absolute().parent
        return os.path.relpath(path, self.path.parent) if path.is_relative_to(run) else str(path)

    def phase(self, name: str, event: str, **numbers: float | int | str) -> None:
        """Log the start or the end of a phase of the job; phases are not sent to MLflow."""
        self._write("phase", name=name, event=event, **numbers)

    def finish(self, status: Status) -> None:
        """Log the final status of the run; it is sent to MLflow after all other records."""
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
        self._append(line.encode() + b"\n")

    def _append(self, data: bytes) -> None:
        """Write a record whole or not at all: the next one would be appended to a partial line, and lost with it."""
        end = os.fstat(self._file).st_size
        try:
            while data:  # a disk that is almost full takes a part, and refuses the rest
                data = data[os.write(self._file, data) :]
        except OSError:
            os.ftruncate(self._file, end)
            raise


def read_records(path: Path, offset: int) -> Iterator[tuple[Record | None, int]]:
    """Yield every complete line from byte `offset` on (None if it is not a record), and the offset after it."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # the line is still being written
            offset += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield record if isinstance(record, dict) and "kind" in record else None, offset


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Read the metrics of all journals in `folder`.

    Returns:
        The points (step, value, unix seconds) of every name, sorted by step.
    """
    metrics: dict[str, list[tuple[int, float, float]]] = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        for record, _ in read_records(path, 0):
            if record and record["kind"] == "metrics":
                for key, value in record["values"].items():
                    metrics.setdefault(key, []).append((record["step"], float(value), record["time"]))
    return {key: sorted(points) for key, points in metrics.items()}


class JournalTail:
    """Reader of the journals of a folder that are being written.

    Args:
        folder: holds the journals, *.jsonl; may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._offsets: dict[Path, int] = {}

    def read(self) -> Iterator[Record]:
        """Yield the records that were written since the last call, by time; those of a journal stay in its order.

        The writers' clocks differ, and one may be set back.
        """
        journals = map(self._read, sorted(self._folder.glob("*.jsonl")))
        yield from heapq.merge(*journals, key=lambda record: float(record["time"]))

    def _read(self, path: Path) -> Iterator[Record]:
        for record, offset in read_records(path, self._offsets.get(path, 0)):
            self._offsets[path] = offset
            if record is not None:
                yield record


class StoredJournalTail(JournalTail):
    """Reader of the journals of a folder in an object store, as far as they are delivered.

    Args:
        folder: holds the journals as segments.
    """

    def __init__(self, folder: RemotePath) -> None:
        self._remote = folder
        self._copies = tempfile.TemporaryDirectory(prefix="rayface-journals-")  # deleted with this object
        super().__init__(Path(self._copies.name))

    def read(self) -> Iterator[Record]:
        """Yield the records that were delivered since the last call, by time."""
        for path in self._remote.iterdir():
            if path.name.endswith(".jsonl"):
                Segments(self._folder / path.name, path).pull()
        yield from super().read()
