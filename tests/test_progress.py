"""Phases are announced, shown, timed and recorded in the job's journal."""

import json
import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rayface import progress
from rayface.progress import Bar, phase, recorded_in, show_training, shown_on
from rayface.tracking.journal import Journal


def records_of(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "time"} for record in found]


@pytest.mark.parametrize(
    ("parts", "started", "ended"),
    [(2, "2 parts", "2 parts, 1,000 images"), (1000, "1,000 images", "1,000 images")],
    ids=["several rows a part", "one row a part"],
)
def test_phase_with_rows_logs_counts_seconds_and_rate(
    parts: int, started: str, ended: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="rayface")
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with phase("embed shards", parts=parts, rows=1000):
        pass
    assert caplog.messages == [
        f"embed shards: started, {started}",
        f"embed shards: {ended} in 4.0 s (250 images/s)",
    ]


def test_phase_of_unknown_size_logs_start_and_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="rayface")
    clock = iter([0.0, 1.5])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with phase("report"):
        pass
    assert caplog.messages == ["report: started", "report: finished in 1.5 s"]


def test_phase_that_is_shown_elsewhere_has_no_bar(caplog: pytest.LogCaptureFixture) -> None:
    class Bars(progress._NoDisplay):
        names: ClassVar[list[str]] = []

        def bar(self, name: str, rows: int | None = None, parts: int | None = None) -> AbstractContextManager[Bar]:
            self.names.append(name)
            return super().bar(name, rows, parts)

    caplog.set_level(logging.INFO, logger="rayface")
    with shown_on(Bars()), phase("train", shown=False), phase("report"):
        pass
    assert Bars.names == ["report"]
    assert "train: started" in caplog.messages


def test_phase_inside_a_journal_is_recorded_and_no_metric(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal" / "driver.jsonl")
    with recorded_in(journal), phase("scan shards", parts=3) as current:
        current.rows = 7
    journal.close()
    start, end = records_of(journal.path)
    assert start == {"kind": "phase", "name": "scan shards", "event": "start", "parts": 3}
    assert end.pop("seconds") >= 0
    assert end == {"kind": "phase", "name": "scan shards", "event": "end", "parts": 3, "rows": 7}


def test_phase_inside_two_journals_is_recorded_in_the_innermost() -> None:
    class Events(list[tuple[str, str]]):
        def phase(self, name: str, event: str, **numbers: float | int | str) -> None:
            self.append((name, event))

    outer, inner = Events(), Events()
    with recorded_in(outer):
        with recorded_in(inner), phase("a"):
            pass
        with phase("b"):
            pass
    with phase("c"):
        pass
    assert inner == [("a", "start"), ("a", "end")]
    assert outer == [("b", "start"), ("b", "end")]


def test_display_inside_another_shows_until_its_context_ends_and_rows_of_images_only() -> None:
    class Bars(progress._NoDisplay):
        def __init__(self) -> None:
            self.shown: list[tuple[object, ...]] = []

        def bar(self, name: str, rows: int | None = None, parts: int | None = None) -> AbstractContextManager[Bar]:
            self.shown.append((name, rows, parts))
            return super().bar(name, rows, parts)

        def training(self, run: Path, journal: Path, total_steps: int) -> AbstractContextManager[None]:
            self.shown.append((run, journal, total_steps))
            return super().training(run, journal, total_steps)

    outer, inner = Bars(), Bars()
    with shown_on(outer):
        with shown_on(inner), phase("embed", parts=2, rows=7), show_training(Path("a"), Path("b"), 9):
            pass
        with phase("score", parts=3, rows=8, unit="pairs"):
            pass
    with phase("report"):
        pass
    assert inner.shown == [("embed", 7, 2), (Path("a"), Path("b"), 9)]
    assert outer.shown == [("score", None, 3)]


def test_phase_that_fails_records_no_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal" / "driver.jsonl")
    with pytest.raises(KeyboardInterrupt), recorded_in(journal), phase("scan shards"):
        raise KeyboardInterrupt
    journal.close()
    assert [record["event"] for record in records_of(journal.path)] == ["start"]


def test_advances_of_a_phase_reach_the_display(recorder: Any) -> None:
    with phase("convert images", parts=3) as current:
        current.advance()
        current.advance(2)
    assert recorder.advances == [("convert images", 1, 3), ("convert images", 3, 3)]


def test_rows_of_a_phase_reach_the_display_and_never_exceed_all(recorder: Any) -> None:
    with phase("embed shards", parts=2, rows=100) as current:
        for _ in range(3):
            current.advance_rows(40)
    assert recorder.advances == [("embed shards", done, 100) for done in (40, 80, 100)]
