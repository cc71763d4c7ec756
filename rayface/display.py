"""Terminal output: progress on stderr, a table or one line of JSON on stdout."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rayface.credentials import mask, masked
from rayface.progress import Bar
from rayface.tracking.journal import CHECKPOINT_FAULTS, PREFLIGHT, PREFLIGHT_WARNINGS, RECOVERY
from rayface.values import visible

_POLL_SECONDS = 0.5
_WARNINGS = (CHECKPOINT_FAULTS, PREFLIGHT_WARNINGS, RECOVERY)
_SHOWN = {
    "train/loss": "loss {:.3f}",
    "train/lr": "lr {:.4g}",
    "train/images_per_second": "{:,.0f} images/s",
    "eval/accuracy": "accuracy {:.2%}",
}
_PLAIN_SECONDS = 15.0  # interval between lines when stderr is not a terminal


def _console(*, stderr: bool = False, **options: Any) -> Console:
    """Return a console without markup and emoji: paths may contain [brackets] and :names: that rich would interpret."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, **options)


def _safe(text: str) -> str:
    """Return text for a terminal: credentials masked, control characters escaped."""
    return visible(mask(text))


def _text_column(text: str) -> TextColumn:
    return TextColumn(text, markup=False)


def result_table(title: str, rows: Mapping[str, str]) -> None:
    """Print names and values as a table on stdout; long values are wrapped, never truncated."""
    _console().print(_table(title, rows))


@contextmanager
def live_table() -> Iterator[Callable[[str, Mapping[str, str]], None]]:
    """Yield a function that shows a table as `result_table`, on a terminal in place of the one before."""
    console = _console()
    if not console.is_terminal:
        yield _changed_lines(console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda title, rows: live.update(_table(title, rows), refresh=True)


def _changed_lines(console: Console) -> Callable[[str, Mapping[str, str]], None]:
    printed = ""

    def show(title: str, rows: Mapping[str, str]) -> None:
        nonlocal printed
        line = f"{title}  {'  '.join(f'{k} {_safe(v)}' for k, v in rows.items())}"
        if line != printed:
            console.print(line)
        printed = line

    return show


def _title(text: str) -> Text:
    return Text(_safe(text), style="bold", overflow="fold")


def _table(title: str, rows: Mapping[str, str]) -> Group:
    return Group(_title(title), _names_and_values(rows))


def _names_and_values(rows: Mapping[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(_safe(name), _safe(value))
    return table


def columns(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows with the same names as a table with a header on stdout; columns of numbers are right-aligned.

    Cells are wrapped at spaces; where a word would have to break, each row is a block of names and values.
    """
    console = _console()
    console.print(_title(title))
    texts = [[name, *(_safe(row[name]) for row in rows)] for name in rows[0]]
    widths = _widths(texts, console.width - 2 * (len(texts) - 1))
    if widths is None:
        for row in rows:
            console.print(_names_and_values(row))
            console.print()
        return
    table = Table(box=None, pad_edge=False)
    for i, ((name, *cells), width) in enumerate(zip(texts, widths, strict=True)):
        numbers = all(cell == "-" or cell.lstrip("+-")[:1].isdecimal() for cell in cells)
        table.add_column(name, style=None if i else "cyan", justify="right" if numbers else "left", width=width)
    for row in rows:
        table.add_row(*map(_safe, row.values()))
    console.print(table)


def _widths(texts: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return the widths of columns of texts that together take at most `room`, None if words would have to break."""
    widths = [max(map(cell_len, column)) for column in texts]
    words = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in texts]
    while sum(widths) > room:
        spare = [(width, i) for i, width in enumerate(widths) if width > words[i]]
        if not spare:
            return None
        widths[max(spare)[1]] -= 1
    return widths


def json_line(result: Mapping[str, Any]) -> None:
    """Print a result as one line of JSON on stdout."""
    _console(soft_wrap=True, color_system=None).print(json.dumps(masked(result)))


@contextmanager
def progress_bar(name: str, rows: int | None = None, parts: int | None = None) -> Iterator[Bar]:
    """Show the progress of a phase on stderr: a bar on a terminal, else a line every 15 seconds.

    Args:
        rows: number of images, for images/s.
        parts: number of parts, which is shown until the first is done.
    """
    console = _console(stderr=True)
    if not console.is_terminal:
        yield _count_lines(console, name, rows)
        return
    with Progress(
        _text_column("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _text_column("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bars:
        task, start = bars.add_task(name, total=parts, rate=""), time.monotonic()

        def show(done: int, total: int | None) -> None:
            rate = _rate(done, total, rows, time.monotonic() - start)
            bars.update(task, completed=done, total=total, rate=rate)

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
    console = _console(stderr=True)
    console.print(f"run directory {run}")
    follower = _Follower(journal)
    show = _show_bar if console.is_terminal else _show_lines
    done = threading.Event()
    thread = threading.Thread(target=show, args=(console, follower, total_steps, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


class _Follower:
    """Newest value of every metric, and the current phase, in a journal that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Skip the records of earlier sessions of a resumed run.
        self._offset = path.stat().st_size if path.exists() else 0
        self.step = 0
        self.phase = "training"
        self.values: dict[str, float] = {}
        self.steps: dict[str, int] = {}  # of the values
        self._notes: list[str] = []

    def read(self) -> bool:
        """Read new lines; return whether there were any."""
        if not self._path.exists():
            return False
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            record = json.loads(line)
            if record["kind"] == "metrics":
                self.step = max(self.step, record["step"])
                self.values.update({k: float(v) for k, v in record["values"].items()})
                self.steps.update(dict.fromkeys(record["values"], record["step"]))
            elif record["kind"] == "phase":
                self.phase = record["name"] if record["event"] == "start" else "training"
            elif record["kind"] == "tags":
                self._notes += [f"pre-flight: {text}" for key, text in record["values"].items() if key == PREFLIGHT]
                self._notes += [f"warning: {text}" for key, text in record["values"].items() if key in _WARNINGS]
        return bool(whole)

    def show_notes(self, console: Console) -> None:
        """Print new warnings and notes of the run."""
        while self._notes:
            note = self._notes.pop(0)
            style = "yellow" if note.startswith("warning: ") else None
            console.print(_safe(note), style=style)

    def line(self) -> str:
        """Return the newest values as one line."""
        return "  ".join(self._texts().values())

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
    with Progress(
        _text_column("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _text_column("{task.fields[line]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("starting workers", total=total_steps, line="")
        while not done.wait(_POLL_SECONDS):
            if follower.read():
                follower.show_notes(console)
                progress.update(task, description=follower.phase, completed=follower.step, line=follower.line())
        follower.read()
        follower.show_notes(console)
        progress.update(task, completed=follower.step, line=follower.line())


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
