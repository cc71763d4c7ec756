"""Phases of a job: logged at start and end, timed, shown as progress bars and recorded in the job's journal."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)

Bar = Callable[[int, int | None], None]  # (parts done, total parts; None: unknown)


class Display(Protocol):
    """Shows progress to the user."""

    def bar(self, name: str, rows: int | None = None, parts: int | None = None) -> AbstractContextManager[Bar]:
        """Show the progress of a phase of `parts` inside the context; `rows` is its number of images, for the rate."""

    def training(self, run: Path, journal: Path, total_steps: int) -> AbstractContextManager[None]:
        """Show the journal of a run inside the context."""


class PhaseJournal(Protocol):
    """Records phases."""

    def phase(self, name: str, event: str, **numbers: float | int | str) -> None:
        """Record the start or the end of a phase."""


class _NoDisplay:
    @contextlib.contextmanager
    def bar(self, name: str, rows: int | None = None, parts: int | None = None) -> Iterator[Bar]:
        yield lambda done, total: None

    @contextlib.contextmanager
    def training(self, run: Path, journal: Path, total_steps: int) -> Iterator[None]:
        yield


# Global, not per thread or context: all threads of a job share its display and its journal.
_displays: list[Display] = [_NoDisplay()]
_journals: list[PhaseJournal] = []


@contextlib.contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """Show all progress of this process on `display` inside the context."""
    _displays.append(display)
    try:
        yield
    finally:
        _displays.remove(display)


@contextlib.contextmanager
def recorded_in(journal: PhaseJournal) -> Iterator[None]:
    """Record the phases of this process in `journal` inside the context; the innermost journal wins."""
    _journals.append(journal)
    try:
        yield
    finally:
        _journals.remove(journal)


def show_training(run: Path, journal: Path, total_steps: int) -> AbstractContextManager[None]:
    """Show a journal of the run in directory `run` inside the context."""
    return _displays[-1].training(run, journal, total_steps)


@dataclass(kw_only=True)
class Phase:
    """A running phase.

    Attributes:
        parts: total number of parts; None if unknown.
        rows: total number of rows of `unit`; may be set while the phase runs.
    """

    parts: int | None
    rows: int | None
    _bar: Bar
    _done: int = 0
    _rows_done: int = 0

    def advance(self, parts: int = 1) -> None:
        """Count finished parts."""
        self._done += parts
        self._bar(self._done, self.parts)

    def advance_rows(self, rows: int) -> None:
        """Count finished rows, for a phase whose parts take long; use this or `advance`, not both."""
        self._rows_done += rows
        if self.rows is not None:
            self._bar(min(self._rows_done, self.rows), self.rows)  # a part that is done again counts twice


@contextlib.contextmanager
def phase(
    name: str, *, parts: int | None = None, rows: int | None = None, unit: str = "images", shown: bool = True
) -> Iterator[Phase]:
    """Log the start of a phase, show its progress, and log its time and rate at the end.

    Args:
        name: name of the phase, for example "embed shards".
        parts: total number of parts.
        rows: total number of rows, for the rate.
        unit: name of a row, for example "images".
        shown: show a bar; False if the progress is shown in another way.
    """
    logger.info("%s: started%s", name, "".join(f", {count}" for count in _counts(parts, rows, unit)[:1]))
    _record(name, "start", parts=parts, rows=rows)
    start = time.monotonic()
    display = _displays[-1] if shown else _NoDisplay()
    with display.bar(name, rows if unit == "images" else None, parts) as bar:
        current = Phase(parts=parts, rows=rows, _bar=bar)
        yield current
    seconds = time.monotonic() - start
    logger.info("%s: %s", name, _summary(current.parts, current.rows, unit, seconds))
    _record(name, "end", parts=current.parts, rows=current.rows, seconds=seconds)


def _summary(parts: int | None, rows: int | None, unit: str, seconds: float) -> str:
    counts = _counts(parts, rows, unit)
    rate = f" ({rows / seconds:,.0f} {unit}/s)" if rows and seconds > 0 else ""
    return f"{', '.join(counts)} in {seconds:,.1f} s{rate}" if counts else f"finished in {seconds:,.1f} s"


def _counts(parts: int | None, rows: int | None, unit: str) -> list[str]:
    counts = []
    if parts is not None and parts != rows:  # do not print the same number twice
        counts.append(f"{parts:,} part{'' if parts == 1 else 's'}")
    if rows is not None:
        counts.append(f"{rows:,} {unit}")
    return counts


def _record(name: str, event: str, **numbers: float | int | None) -> None:
    if _journals:
        _journals[-1].phase(name, event, **{key: value for key, value in numbers.items() if value is not None})
