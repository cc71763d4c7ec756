"""Progress of running trials, without Ray."""

import json
import logging
import time

import optuna
import pytest

from rayface import config as configs
from rayface.tuning import progress
from rayface.tuning.progress import TrialProgress
from rayface.tuning.sweep_directory import SweepDirectory


@pytest.fixture
def sweep(tmp_path) -> tuple[SweepDirectory, optuna.Study]:
    return SweepDirectory(tmp_path), optuna.create_study()


def begun(directory: SweepDirectory, number: int, *steps: int) -> None:
    """Begin the run of a trial and log steps of an epoch of 10, two seconds apart."""
    run = directory.run(number)
    run.path.mkdir(parents=True)
    run.write_config(configs.load("debug", None, ["train.epochs=2"]))
    run.journal("driver").params({"name": "run"})
    for step in steps:
        values = {"train/loss": 9.5, "train/epoch": step / 10}
        record = {"kind": "metrics", "time": time.time() + 2 * step, "step": step, "values": values}
        with run.worker_journal_file.open("a") as file:
            file.write(f"{json.dumps(record)}\n")


def test_lines_name_only_running_trials_with_step_loss_and_time_left(sweep):
    directory, study = sweep
    ended, trains, starts = study.ask(), study.ask(), study.ask()
    study.tell(ended, 0.5)
    begun(directory, ended.number, 1, 20)
    begun(directory, trains.number, 1, 5)
    first, second = TrialProgress(directory, study).lines()
    assert first == f"trial {trains.number}: step 5 of 20, loss 9.500, starting"
    assert second == f"trial {starts.number}: starting"


def test_line_of_a_trial_that_trains_tells_the_time_left(sweep):
    directory, study = sweep
    number = study.ask().number
    begun(directory, number, 1, 5)
    journal = directory.run(number).worker_journal()
    journal.phase("start", "end")
    journal.close()
    assert TrialProgress(directory, study).lines() == [f"trial {number}: step 5 of 20, loss 9.500, 0:00:30 left"]


def test_show_logs_once_an_interval(sweep, monkeypatch, caplog):
    directory, study = sweep
    study.ask()
    shown = TrialProgress(directory, study)
    with caplog.at_level(logging.INFO, logger="rayface"):
        shown.show()
        assert not caplog.messages
        monkeypatch.setattr(progress.time, "monotonic", lambda: shown._next)
        shown.show()
        monkeypatch.undo()
        shown.show()
    assert caplog.messages == ["trial 0: starting"]


def test_show_of_trials_that_cannot_be_read_is_one_warning_and_goes_on(sweep, monkeypatch, caplog):
    directory, study = sweep
    shown = TrialProgress(directory, study)

    def refuse(**options: object) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(study, "get_trials", refuse)
    monkeypatch.setattr(progress.time, "monotonic", lambda: shown._next)
    shown.show()
    assert caplog.messages == ["the trials' progress cannot be read: stale file handle"]
