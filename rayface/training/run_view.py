"""A run as its journals show it now: for `rayface watch`, and for the report of a run that trains."""

import math
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Generic, TypeVar

from rayface.tracking.journal import RECOVERY, JournalTail, Record
from rayface.training.doctor.live import ADVICE
from rayface.training.run_directory import RunDirectory

_ENDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
_SILENT_SECONDS = 60.0  # after which a run without news is asked whether a process still owns it
_RATE_POINTS = 20
MAX_POINTS = 4096
"""Values of a metric that are kept; more are thinned."""
_BLOCKS, _WIDTH = "▁▂▃▄▅▆▇█", 40
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunView:
    """Newest state of a run.

    Attributes:
        state: "finished", "failed", "interrupted", "stopped" (its processes are gone), or the current phase.
        total_steps: None until it is known.
        seconds_left: None without two logged steps, and of an ended run.
        losses, accuracies: logged values, oldest first.
        notes: recoveries and the doctor's advice.
    """

    name: str
    state: str
    ended: bool
    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    losses: tuple[float, ...] = ()
    accuracies: tuple[tuple[int, float], ...] = ()
    faults: int = 0
    restarts: int = 0
    rollbacks: int = 0
    notes: tuple[str, ...] = ()

    def rows(self) -> dict[str, str]:
        """Return names and values for a table; what is not known yet is left out."""
        total = "" if self.total_steps is None else f" of {self.total_steps:,}"
        rows = {"state": self.state, "step": f"{self.step:,}{total}"}
        if self.epoch is not None:
            rows["epoch"] = f"{self.epoch:.2f} of {self.epochs:g}"
        if self.losses:
            rows["loss"] = f"{self.losses[-1]:.3f}  {sparkline(self.losses)}"
        if self.learning_rate is not None:
            rows["learning rate"] = f"{self.learning_rate:.4g}"
        if self.images_per_second is not None:
            rows["images/s"] = f"{self.images_per_second:,.0f}"
        if self.seconds_left is not None:
            rows["time left"] = str(timedelta(seconds=round(self.seconds_left)))
        if self.accuracies:
            rows["accuracy"] = ", ".join(f"{value:.2%} at step {step:,}" for step, value in self.accuracies[-4:])
        rows["corrupt samples"] = f"{self.faults:,}"
        if self.restarts or self.rollbacks:
            rows["recoveries"] = f"{self.restarts} restarts, {self.rollbacks} roll-backs"
        return rows | {f"note {number}": note for number, note in enumerate(self.notes, 1)}


def sparkline(values: tuple[float, ...]) -> str:
    """Return values as a line of at most _WIDTH blocks, the means of neighbours."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    width = min(_WIDTH, len(known))
    bounds = [place * len(known) // width for place in range(width + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    return "".join(_BLOCKS[round((mean - low) / (high - low or 1) * (len(_BLOCKS) - 1))] for mean in means)


class Thinned(Generic[T]):
    """A series that grows: of all its values, `most` or fewer at equal distances, and the newest one."""

    def __init__(self, most: int) -> None:
        self._most, self._every, self._seen = most, 1, 0
        self._kept: list[T] = []
        self._newest: list[T] = []

    def append(self, value: T) -> None:
        """Add a value."""
        due = self._seen % self._every == 0
        self._seen += 1
        self._newest = [] if due else [value]
        if due:
            self._kept.append(value)
        if len(self._kept) > self._most:
            self._kept = self._kept[::2]
            self._every *= 2

    def values(self) -> list[T]:
        """Return the kept values, oldest first."""
        return self._kept + self._newest


@dataclass(kw_only=True)
class RunWatcher:
    """Follows the journals of a run that this or another process writes; only reads.

    Args:
        tail: reader of the journals, `run.journal_tail()` in a process that writes none; None: of those that the run's
            driver writes on this machine.
    """

    run: RunDirectory
    tail: JournalTail | None = None
    _metrics: dict[str, float] = field(default_factory=dict)
    _points: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RATE_POINTS))  # (step, time)
    _losses: Thinned[float] = field(default_factory=lambda: Thinned(MAX_POINTS))
    _accuracies: dict[int, float] = field(default_factory=dict)
    _notes: dict[str, str] = field(default_factory=dict)
    _state: str = "starting"
    _ended: bool = False
    _step: int = 0
    _newest: float = 0.0

    def __post_init__(self) -> None:
        self._tail = self.tail or JournalTail(self.run.journals)
        self._epochs = self.run.read_config().train.epochs
        self._total: int | None = None

    def read(self) -> RunView:
        """Read what is new, and return the run as it is now."""
        for record in self._tail.read():
            self._newest = max(self._newest, record["time"])
            self._take(record)
        if self.run.is_finished():
            self._state, self._ended = "finished", True
        elif not self._ended and time.time() - self._newest > _SILENT_SECONDS and not self.run.is_owned():
            self._state, self._ended = "stopped: no process owns the run", True
        return self._view()

    def _take(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "finish":
            self._state, self._ended = _ENDS.get(record["status"], "ended"), True
        elif kind == "params":  # a new session of the run
            self._state, self._ended = "starting", False
            self._points.clear()
        elif kind == "phase":
            self._state = record["name"] if record["event"] == "start" else "training"
        elif kind == "tags":
            self._notes |= {key: text for key, text in record["values"].items() if key in (ADVICE, RECOVERY)}
        elif kind == "metrics":
            self._take_metrics(record)

    def _take_metrics(self, record: Record) -> None:
        step, values = record["step"], {name: float(value) for name, value in record["values"].items()}
        self._metrics |= values
        self._step = step if "train/loss" in values else max(self._step, step)  # a roll-back lowers it
        if values.get("train/epoch"):
            self._total = max(step, round(self._epochs * step / values["train/epoch"]))
        if "train/loss" in values:
            self._points.append((step, record["time"]))
            self._losses.append(values["train/loss"])
        if "eval/accuracy" in values:
            self._accuracies[step] = values["eval/accuracy"]

    def _view(self) -> RunView:
        metrics, total = self._metrics, self._total
        return RunView(
            name=self.run.name,
            state=self._state,
            ended=self._ended,
            step=self._step,
            total_steps=total,
            epoch=metrics.get("train/epoch"),
            epochs=self._epochs,
            learning_rate=metrics.get("train/lr"),
            images_per_second=metrics.get("train/images_per_second"),
            seconds_left=None if self._ended or total is None else self._seconds_left(total),
            losses=tuple(self._losses.values()),
            accuracies=tuple(sorted(self._accuracies.items())),
            faults=int(metrics.get("data/faults", 0)),
            restarts=int(metrics.get("train/restarts", 0)),
            rollbacks=int(metrics.get("train/rollbacks", 0)),
            notes=tuple(self._notes.values()),
        )

    def _seconds_left(self, total_steps: int) -> float | None:
        """Return the time that the rest takes at the speed of the last logged steps, with their pauses."""
        if len(self._points) < 2:
            return None
        (first, start), (last, end) = self._points[0], self._points[-1]
        forward = last > first and end > start  # not after a roll-back, and not where the clock was set back
        return max(0, total_steps - last) * (end - start) / (last - first) if forward else None
