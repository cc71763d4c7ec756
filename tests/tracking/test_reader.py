"""Reading of journals for any destination: positions, replaced journals, missing packages."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest

from rayface import config as configs
from rayface.tracking import Journal, require_packages
from rayface.tracking.journal import Record
from rayface.tracking.reader import Destination, JournalReader

TIMEOUT = 30


class Kept:
    """A destination that keeps what it is given, and loses its answer to some batches."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.models: list[Path] = []
        self.status = ""

    def log(self, records: Sequence[Record]) -> None:
        self.steps += [record["step"] for record in records if record["kind"] == "metrics"]

    def log_artifact(self, spool: Path, path: str, folder: str) -> None:
        raise AssertionError("no artifact was logged")

    def log_model(self, spool: Path, path: str) -> None:
        self.models.append(spool / path)

    def end(self, status: str, seconds: float) -> None:
        self.status = status

    def reopen(self) -> None:
        self.status = "RUNNING"


class Reader(JournalReader):
    suffix = "-kept"
    kept = Kept()

    def _connect(self) -> Destination:
        return self.kept


def read(spool: Path, kept: Kept) -> None:
    reader = Reader(spool, place="here", target="")
    reader.kept = kept  # type: ignore[misc]
    reader.start()
    assert reader.close(TIMEOUT), reader.last_error


def test_reader_of_several_sessions_sends_every_record_once(tmp_path: Path) -> None:
    kept, journal = Kept(), Journal(tmp_path / "a.jsonl")
    for first in (0, 3):
        for step in range(first, first + 3):
            journal.metrics({"loss": 1.0}, step)
        journal.finish("FINISHED")
        read(tmp_path, kept)
    assert (kept.steps, kept.status) == ([0, 1, 2, 3, 4, 5], "FINISHED")


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
