"""The diagnosis beside a run: one line of advice, from the journal alone."""

import logging
from dataclasses import replace

import pytest

from rayface import config as configs
from rayface.training.doctor import live
from rayface.training.doctor.history import RunHistory
from rayface.training.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDirectory:
    monkeypatch.setattr(live, "_POLL_SECONDS", 0.01)
    return RunDirectory(tmp_path)


def untrained(*overrides: str) -> RunHistory:
    return RunHistory(config=configs.load("debug", None, overrides), num_classes=20, steps_per_epoch=10)


def advice_of(run: RunDirectory, start: RunHistory, steps: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    journal, driver = run.worker_journal(), run.journal("driver")
    with caplog.at_level(logging.WARNING, logger="rayface"), live.advised(run, start, driver):
        for step in range(1, steps + 1):
            journal.metrics({"train/loss": 0.5 if step > 50 else 5.0}, step)
    return [record.getMessage() for record in caplog.records if record.name == live.logger.name]


def test_advice_of_a_run_with_a_wrong_key_is_one_line_and_a_tag(run, caplog):
    lines = advice_of(run, untrained("optim.lr=1"), 120, caplog)
    assert len(lines) == 1
    assert lines[0].startswith("doctor: optim.lr: learning rate 1, expected about 0.1")
    assert "doctor.advice" in (run.journals / "driver.jsonl").read_text()


def test_advice_of_a_short_run_comes_at_its_end(run, caplog):
    assert len(advice_of(run, untrained("head.scale=1"), 8, caplog)) == 1


def test_advice_of_a_healthy_run_is_none(run, caplog):
    assert advice_of(run, untrained(), 120, caplog) == []


def test_advice_after_a_failed_diagnosis_lets_the_run_go_on(run, caplog):
    broken = replace(untrained(), config=configs.load("debug", None, ["head.margin=nonsense"]))
    assert advice_of(run, broken, 120, caplog) == []
