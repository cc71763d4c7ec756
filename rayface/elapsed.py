"""How long a run or a sweep was worked at: over all its sessions, those that were killed included."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayface.files import write_json
from rayface.tracking.journal import read_records
from rayface.tracking.spool import JOURNAL

_SESSIONS = "sessions.json"


@contextmanager
def session(folder: Path) -> Iterator[Callable[[], float]]:
    """Count one more session in a folder, to be entered before its journals; what it yields says the seconds of all."""
    before = _sessions(folder)
    spent = sum(seconds for _, seconds in before)
    start, opened = time.monotonic(), time.time()
    _write(folder, [*before, (opened, None)])
    try:
        yield lambda: spent + time.monotonic() - start
    finally:
        with suppress(OSError):  # then it counts as killed, and what went wrong inside is still told
            _write(folder, [*before, (opened, time.monotonic() - start)])


def seconds_of(folder: Path) -> float:
    """What all sessions in a folder took, 0 where there was none."""
    return sum(seconds for _, seconds in _sessions(folder))


def _sessions(folder: Path) -> list[tuple[float, float]]:
    """When each began (Unix time) and its seconds; one that was killed lasted to its last word in a journal."""
    path = folder / _SESSIONS
    if not path.exists():
        return []
    found = json.loads(path.read_text())["sessions"]
    return [(start, max(0.0, _last_word(folder) - start) if took is None else took) for start, took in found]


def _last_word(folder: Path) -> float:
    """When the newest record was written, of the folder's journals and of those of its trials."""
    records = (record for path in folder.rglob(f"{JOURNAL}/*.jsonl") for record, _ in read_records(path, 0))
    return max((record["time"] for record in records if record), default=0.0)


def _write(folder: Path, sessions: list[tuple[float, float | None]]) -> None:
    write_json(folder / _SESSIONS, {"sessions": sessions})
