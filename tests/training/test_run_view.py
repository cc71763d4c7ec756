"""A run as its journals show it."""

import json
import time

import pytest

from rayface import config as configs
from rayface.files import exclusive_folder, write_json
from rayface.training import run_view
from rayface.training.run_directory import RunDirectory
from rayface.training.run_view import RunWatcher, sparkline


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.write_config(configs.load("debug", None, ["train.epochs=2"]))
    directory.journal("driver").params({"name": "run"})
    return directory


def logged(run: RunDirectory, *steps: int, seconds: float = 2.0) -> None:
    """Log steps of an epoch of 10, `seconds` apart, the first of them now."""
    for step in steps:
        values = {"train/loss": 10.0 - step, "train/epoch": step / 10, "train/lr": 0.1, "train/images_per_second": 64.0}
        when = time.time() + seconds * (step - steps[0])
        line = json.dumps({"kind": "metrics", "time": when, "step": step, "values": values})
        with run.worker_journal_file.open("a") as file:
            file.write(f"{line}\n")


def test_view_of_a_run_that_trains_has_step_epoch_and_time_left(run):
    logged(run, 1, 2, 5)
    view = RunWatcher(run=run).read()
    assert (view.step, view.total_steps, view.epoch, view.ended) == (5, 20, 0.5, False)
    assert view.seconds_left == pytest.approx(15 * 2.0, rel=0.01)
    rows = view.rows()
    assert rows["step"] == "5 of 20"
    assert rows["time left"] == "0:00:30"
    assert rows["loss"].startswith("5.000  █")


def test_view_counts_steps_by_those_of_the_training_only(run):
    logged(run, 5, 10)
    with run.worker_journal_file.open("a") as file:
        record = {"kind": "metrics", "time": time.time() + 20, "step": 15, "values": {"checkpoint/seconds": 1.0}}
        file.write(f"{json.dumps(record)}\n")
    watcher = RunWatcher(run=run)
    assert (watcher.read().step, watcher.read().total_steps) == (15, 20)
    logged(run, 8)  # after a roll-back
    view = watcher.read()
    assert view.total_steps == 20


def test_view_follows_what_another_process_appends(run):
    watcher = RunWatcher(run=run)
    assert (watcher.read().state, watcher.read().step) == ("starting", 0)
    logged(run, 1, 2)
    run.journal("evaluation").metrics({"eval/accuracy": 0.9}, 2)
    run.journal("tags").tags({"doctor.advice": "optim.lr: too high"})
    view = watcher.read()
    assert view.accuracies == ((2, 0.9),)
    assert view.rows()["note 1"] == "optim.lr: too high"
    logged(run, 3)
    assert watcher.read().losses == (9.0, 8.0, 7.0)


@pytest.mark.parametrize(
    ("status", "state"), [("FAILED", "failed"), ("KILLED", "interrupted"), ("FINISHED", "finished")]
)
def test_view_of_an_ended_session_says_how_and_a_new_session_resumes(run, status, state):
    logged(run, 1, 2)
    watcher, driver = RunWatcher(run=run), run.journal("driver")
    driver.finish(status)
    view = watcher.read()
    assert (view.state, view.ended, view.seconds_left) == (state, True, None)
    driver.params({"name": "run"})
    assert watcher.read().ended is False


def test_view_of_a_run_resumed_by_a_clock_that_is_behind_shows_the_new_session(run):
    now = time.time()
    ended = {"kind": "finish", "time": now + 100, "status": "KILLED"}
    with (run.journals / "driver.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(each)}\n" for each in (ended, {"kind": "params", "time": now, "values": {}}))
    logged(run, 8, 9, seconds=-1.0)
    view = RunWatcher(run=run).read()
    assert (view.state, view.ended, view.step, view.losses) == ("starting", False, 9, (2.0, 1.0))
    assert view.seconds_left is None


def test_view_of_a_killed_run_is_stopped_once_nobody_owns_it(run, monkeypatch):
    monkeypatch.setattr(run_view, "_SILENT_SECONDS", 0.0)
    logged(run, 1, 2, seconds=0.0)
    watcher = RunWatcher(run=run)
    with exclusive_folder(run.path, "run"):
        assert watcher.read().ended is False
    assert watcher.read().state == "stopped: no process owns the run"


def test_view_of_a_finished_run_is_ended(run):
    logged(run, 20)
    run.model.touch()
    (run.path / "model.json").touch()
    write_json(run.path / "result.json", {})
    view = RunWatcher(run=run).read()
    assert (view.state, view.ended, view.step) == ("finished", True, 20)


def test_view_of_many_losses_keeps_few(run, monkeypatch):
    monkeypatch.setattr(run_view, "MAX_POINTS", 8)
    logged(run, *range(1, 31), seconds=0.1)
    assert RunWatcher(run=run).read().losses == (9.0, 5.0, 1.0, -3.0, -7.0, -11.0, -15.0, -19.0, -20.0)


def test_sparkline_shows_the_course_and_ignores_what_is_not_finite():
    assert sparkline((3.0, 2.0, float("nan"), 1.0)) == "█▅▁"
    assert len(sparkline(tuple(float(value) for value in range(500)))) == 40
    assert sparkline(()) == ""
    assert sparkline((1.0, 1.0)) == "▁▁"
