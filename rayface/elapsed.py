"""Elapsed time: of a run or a sweep over all its sessions, including killed ones, and of the steps of a job."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayface.files import write_json
from rayface.tracking.journal import read_records

_SESSIONS = "sessions.json"


@contextmanager
def session(folder: Path) -> Iterator[Callable[[], float]]:
    """Measure a session in a folder; enter it before the folder's journals are opened.

    Yields:
        A function that returns the total seconds of all sessions so far.
    """
    before = _sessions(folder)
    spent = sum(seconds for _, seconds in before)
    start, opened = time.monotonic(), time.time()
    _write(folder, [*before, (opened, None)])
    try:
        yield lambda: spent + time.monotonic() - start
    finally:
        with suppress(OSError):  # the session then counts as killed; an error from inside is still raised
            _write(folder, [*before, (opened, time.monotonic() - start)])


def seconds_of(folder: Path) -> float:
    """Return the total seconds of all sessions in a folder, 0 without any."""
    return sum(seconds for _, seconds in _sessions(folder))


def _sessions(folder: Path) -> list[tuple[float, float]]:
    """Return start (Unix time) and seconds of each session; a killed one ends at its last journal record."""
    path = folder / _SESSIONS
    if not path.exists():
        return []
    found = json.loads(path.read_text())["sessions"]
    return [(start, max(0.0, _last_record(folder) - start) if took is None else took) for start, took in found]


def _last_record(folder: Path) -> float:
    """Return the time of the newest record in the journals of a folder and of its trials."""
    records = (record for path in folder.rglob("*.jsonl") for record, _ in read_records(path, 0))
    return max((record["time"] for record in records if record), default=0.0)


def _write(folder: Path, sessions: list[tuple[float, float | None]]) -> None:
    write_json(folder / _SESSIONS, {"sessions": sessions})


class Laps:
    """Measure the seconds of consecutive stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def end(self, stage: str) -> None:
        """Record the seconds since the end of the stage before."""
        now = time.monotonic()
        self.seconds[stage], self._last = now - self._last, now
