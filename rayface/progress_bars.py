"""Progress at the terminal, on stderr: one live bar at a time, or a line now and then without a terminal."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from rayface.display import new_console, safe
from rayface.pools import background_thread
from rayface.progress import Bar
from rayface.tracking.journal import CHECKPOINT_FAULTS, PREFLIGHT, PREFLIGHT_WARNINGS, RECOVERY, read_records

_POLL_SECONDS = 0.5
_WARNINGS = (CHECKPOINT_FAULTS, PREFLIGHT_WARNINGS, RECOVERY)
_SHOWN = {
    "train/loss": "loss {:.3f}",
    "train/lr": "lr {:.4g}",
    "train/images_per_second": "{:,.0f} images/s",
    "eval/accuracy": "accuracy {:.2%}",
}
_LEAST_BAR = 8  # columns of the terminal
_DROPPED = ("train/lr", "train/images_per_second")  # what a narrow terminal does not show, in this order
_PLAIN_SECONDS = 15.0  # interval between lines when stderr is not a terminal

# Global: all threads of a process share its terminal. The last one is shown.
_live_bars: list[Progress] = []


def _bars(console: Console, bar_width: int, **options: Any) -> Progress:
    """Return a bar with counts, the field `line` and times; where they do not fit, the bar becomes shorter."""
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=bar_width),
        MofNCompleteColumn(table_column=whole),
        TextColumn("{task.fields[line]}", markup=False),
        TimeElapsedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        console=console,
        **options,
    )


@contextmanager
def _alone(bars: Progress) -> Iterator[Progress]:
    """Show bars inside the context, and hide those around it: two live displays would overwrite each other."""
    for outer in _live_bars[-1:]:
        outer.stop()
    _live_bars.append(bars)
    try:
        with bars:
            yield bars
    finally:
        _live_bars.remove(bars)
        for outer in _live_bars[-1:]:
            outer.start()


@contextmanager
def progress_bar(name: str, rows: int | None = None, parts: int | None = None) -> Iterator[Bar]:
    """Show the progress of a phase on stderr: a bar on a terminal, else a line every 15 seconds.

    Args:
        rows: number of images, for images/s.
        parts: number of parts, which is shown until the first is done.
    """
    console = new_console(stderr=True)
    if not console.is_terminal:
        yield _count_lines(console, name, rows)
        return
    with _alone(_bars(console, 30, transient=True)) as bars:
        task, start = bars.add_task(name, total=parts, line=""), time.monotonic()

        def show(done: int, total: int | None) -> None:
            rate = _rate(done, total, rows, time.monotonic() - start)
            bars.update(task, completed=done, total=total, line=rate)

        yield show


def _rate(done: int, total: int | None, rows: int | None, seconds: float) -> str:
    return f"{rows * done / total / seconds:,.0f} images/s" if rows and total and seconds > 0 else ""


def _count_lines(console: Console, label: str, rows: int | None = None) -> Bar:
    start = shown = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= _PLAIN_SECONDS:
            shown = now
            counts = f"{label} {done}/{total}" if total is not None else f"{label} {done}"
            left = f"{timedelta(seconds=round((now - start) * (total - done) / done))} left" if total and done else ""
            console.print("  ".join(filter(None, (counts, _rate(done, total, rows, now - start), left))))

    return show


@contextmanager
def follow_training(run: Path, journal: Path, total_steps: int) -> Iterator[None]:
    """Follow a run's journal on stderr: images/s, loss, learning rate, accuracy, remaining time."""
    console = new_console(stderr=True)
    console.print(f"run directory {run}")
    show = _show_bar if console.is_terminal else _show_lines
    with background_thread(partial(show, console, _Follower(journal), total_steps), "progress", wait=5):
        yield


class _Follower:
    """Newest value of every metric, and the current phase, in a journal that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Skip the records of earlier sessions of a resumed run; its journal cuts off a line that does not end.
        self._offset = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
        self.step = 0
        self.phase = "training"
        self.values: dict[str, float] = {}
        self.steps: dict[str, int] = {}  # of the values
        self._notes: list[str] = []

    def read(self) -> bool:
        """Read new lines; return whether there were any."""
        before = self._offset
        for record, end in read_records(self._path, before) if self._path.exists() else ():
            self._offset = end
            if record is None:
                continue
            if record["kind"] == "metrics":
                self.step = max(self.step, record["step"])
                self.values.update({k: float(v) for k, v in record["values"].items()})
                self.steps.update(dict.fromkeys(record["values"], record["step"]))
            elif record["kind"] == "phase":
                self.phase = record["name"] if record["event"] == "start" else "training"
            elif record["kind"] == "tags":
                self._notes += [f"pre-flight: {text}" for key, text in record["values"].items() if key == PREFLIGHT]
                self._notes += [f"warning: {text}" for key, text in record["values"].items() if key in _WARNINGS]
        return self._offset > before

    def show_notes(self, console: Console) -> None:
        """Print new warnings and notes of the run."""
        while self._notes:
            note = self._notes.pop(0)
            style = "yellow" if note.startswith("warning: ") else None
            console.print(safe(note), style=style)

    def line(self, room: int) -> str:
        """Return the newest values as one line, without the least important ones that exceed `room`."""
        texts = self._texts()
        for name in _DROPPED:
            if len("  ".join(texts.values())) > room:
                texts.pop(name, None)
        return "  ".join(texts.values())

    def dated_line(self, total_steps: int) -> str:
        """Return the newest values with the step of the loss; one of another step has its own. "" without values."""
        texts, steps = self._texts(), self.steps
        if not texts:
            return ""
        at = steps[next(iter(texts))]
        dated = (f"{text}{'' if steps[name] == at else f' at step {steps[name]}'}" for name, text in texts.items())
        return "  ".join([f"step {at}/{total_steps}", *dated])

    def _texts(self) -> dict[str, str]:
        return {name: text.format(self.values[name]) for name, text in _SHOWN.items() if name in self.values}


def _show_bar(console: Console, follower: _Follower, total_steps: int, done: threading.Event) -> None:
    times = len(" training   0:00:00 -:--:-- ")
    room = console.width - times - _LEAST_BAR - len(f" {total_steps}/{total_steps} ")
    with _alone(_bars(console, 24)) as bars:
        task = bars.add_task("starting workers", total=total_steps, line="")
        while not done.wait(_POLL_SECONDS):
            if follower.read():
                follower.show_notes(console)
                bars.update(task, description=follower.phase, completed=follower.step, line=follower.line(room))
        follower.read()
        follower.show_notes(console)
        bars.update(task, completed=follower.step, line=follower.line(room))


def _show_lines(console: Console, follower: _Follower, total_steps: int, done: threading.Event) -> None:
    shown, printed, ended = 0.0, "", False
    while not ended:
        ended = done.wait(_POLL_SECONDS)
        follower.read()
        follower.show_notes(console)
        line = follower.dated_line(total_steps)
        due = ended or time.monotonic() - shown >= _PLAIN_SECONDS
        if due and line not in ("", printed):
            shown, printed = time.monotonic(), line
            console.print(line)
