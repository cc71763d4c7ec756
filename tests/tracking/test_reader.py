"""Reading of journals for any destination: positions, replaced journals, missing packages."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest

from rayface import config as configs
from rayface.tracking import Journal, reader, require_packages
from rayface.tracking.delivered import Delivered
from rayface.tracking.journal import Record
from rayface.tracking.reader import Destination, JournalReader

TIMEOUT = 30


class Kept:
    """A destination that keeps what it is given; the first call of each kind of `fails` is refused."""

    def __init__(self, *fails: str) -> None:
        self.fails = list(fails)
        self.batches: list[list[int]] = []
        self.artifacts: list[tuple[str, str]] = []
        self.models: list[Path] = []
        self.status = ""

    def _call(self, kind: str) -> None:
        if kind in self.fails:
            self.fails.remove(kind)
            raise ConnectionError(f"no answer to {kind}")

    @property
    def steps(self) -> list[int]:
        return [step for batch in self.batches for step in batch]

    def log(self, records: Sequence[Record]) -> None:
        self._call("log")
        self.batches.append([record["step"] for record in records if record["kind"] == "metrics"])

    def log_artifact(self, spool: Path, path: str, folder: str) -> None:
        self._call("artifact")
        self.artifacts.append((path, folder))

    def log_model(self, spool: Path, path: str) -> None:
        self._call("model")
        self.models.append((spool / path).resolve())

    def end(self, status: str, seconds: float) -> None:
        self._call("end")
        self.status = status

    def reopen(self) -> None:
        self._call("reopen")
        self.status = "RUNNING"


class Reader(JournalReader):
    suffix = "-kept"
    kept = Kept()

    def _connect(self) -> Destination:
        return self.kept


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_CLOSING_BACKOFF_SECONDS", 0.01)


def read(spool: Path, kept: Kept) -> str | None:
    """Send everything; return the last error."""
    own = Reader(spool, place="here", target="")
    own.kept = kept  # type: ignore[misc]
    own.start()
    assert own.close(TIMEOUT), own.last_error
    return own.last_error


def test_reader_of_several_sessions_sends_every_record_once(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(tmp_path / "a.jsonl")
    for first in (0, 3):
        for step in range(first, first + 3):
            journal.metrics({"loss": 1.0}, step)
        journal.finish("FINISHED")
        read(tmp_path, kept)
    assert (kept.steps, kept.status) == ([0, 1, 2, 3, 4, 5], "FINISHED")


def test_reader_after_errors_sends_artifacts_models_and_the_end_once(tmp_path: Path) -> None:
    kept, journal = Kept("log", "artifact", "model", "end"), Journal(tmp_path / "journal" / "a.jsonl")
    journal.metrics({"loss": 1.0}, 0)
    for name in ("b.png", "a.png", "b.png"):
        journal.artifact(tmp_path / name, "plots")
    for _ in range(2):
        journal.model(tmp_path)
    journal.finish("FAILED")
    for _ in range(2):
        assert read(tmp_path / "journal", kept) is None
    assert kept.fails == []
    assert (kept.batches, kept.artifacts) == ([[0]], [("../b.png", "plots"), ("../a.png", "plots")])
    assert (kept.models, kept.status) == ([tmp_path.resolve()], "FAILED")


def test_reader_whose_preparation_fails_prepares_again(tmp_path: Path) -> None:
    """Else it would begin where it was when it was made, and send again what another process has sent since."""
    kept, journal = Kept(), Journal(tmp_path / "a.jsonl")
    journal.metrics({"loss": 1.0}, 0)
    read(tmp_path, sent := Kept())
    assert sent.steps == [0]
    journal.metrics({"loss": 1.0}, 1)
    state = tmp_path / "delivered-kept.json"
    stored = state.read_text()
    state.unlink()

    class Failing(Reader):
        def _prepare(self) -> Delivered:
            if not state.exists():
                state.write_text(stored)
                raise OSError("stale file handle")
            return super()._prepare()

    failing = Failing(tmp_path, place="here", target="")
    failing.kept = kept  # type: ignore[misc]
    failing.start()
    assert failing.close(TIMEOUT), failing.last_error
    assert kept.steps == [1]


def test_reader_of_an_artifact_that_waits_since_an_earlier_session_sends_it_once(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(tmp_path / "journal" / "a.jsonl")
    waiting = Delivered(target="", artifacts=[("../report.html", "")], models=[".."])
    waiting.save(tmp_path / "journal" / "delivered-kept.json")
    journal.artifact(tmp_path / "report.html")
    journal.model(tmp_path)
    read(tmp_path / "journal", kept)
    assert (kept.artifacts, kept.models) == ([("../report.html", "")], [tmp_path.resolve()])


def test_reader_of_a_run_that_goes_on_reopens_it_once_and_of_another_journals_records_does_not(tmp_path: Path) -> None:
    kept, driver, worker = Kept(), *(Journal(tmp_path / f"{name}.jsonl") for name in "ab")
    driver.finish("FINISHED")
    worker.metrics({"loss": 1.0}, 0)
    read(tmp_path, kept)
    assert kept.status == "FINISHED"
    driver.metrics({"epoch": 1.0}, 1)
    kept.fails.append("reopen")
    read(tmp_path, kept)
    assert (kept.status, kept.steps, kept.fails) == ("RUNNING", [0, 1], [])
    driver.finish("KILLED")
    read(tmp_path, kept)
    assert kept.status == "KILLED"


def test_reader_of_many_metrics_sends_whole_records_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_METRICS", 4)
    kept, journal = Kept(), Journal(tmp_path / "a.jsonl")
    for step, count in enumerate((2, 2, 1, 9, 4, 3)):
        journal.metrics({f"m{number}": 1.0 for number in range(count)}, step)
    read(tmp_path, kept)
    assert kept.batches == [[0, 1], [2], [3], [4], [5]]


def test_reader_of_a_corrupt_line_sends_the_rest_and_keeps_the_error(tmp_path: Path) -> None:
    kept, journal = Kept("artifact"), Journal(tmp_path / "a.jsonl")
    journal.metrics({"loss": 1.0}, 0)
    with journal.path.open("ab") as file:
        file.write(b"smashed\n")
    journal.metrics({"loss": 1.0}, 1)
    journal.artifact(tmp_path / "x")
    end = journal.path.read_bytes().index(b"smashed") + len(b"smashed\n")
    assert read(tmp_path, kept) == f"a.jsonl: the line before byte {end} is not a record, skipped"
    assert (kept.steps, len(kept.artifacts)) == ([0, 1], 1)


def test_reader_of_a_replaced_journal_starts_at_its_beginning(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(tmp_path / "a.jsonl")
    for step in range(3):
        journal.metrics({"loss": 1.0}, step)
    read(tmp_path, kept)
    journal.path.unlink()
    Journal(tmp_path / "a.jsonl").metrics({"loss": 1.0}, 9)
    read(tmp_path, kept)
    assert kept.steps == [0, 1, 2, 9]


def test_setting_whose_package_is_missing_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_packages(configs.load().tracking)
    for name in ("tensorboard", "wandb"):
        asked = configs.load(overrides=[f"tracking.{name}=true"]).tracking
        with pytest.raises(ValueError, match=rf"^tracking.{name}: true: the package {name} is not installed: pip inst"):
            require_packages(asked)
