"""The verb watch."""

import json
import threading

import pytest

from rayface import config as configs
from rayface.storage import RemotePath
from rayface.training.run_directory import RunDirectory
from rayface.training.run_view import RunWatcher


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.write_config(configs.load("debug"))
    directory.journal("driver").params({"name": "run"})
    directory.worker_journal().metrics({"train/loss": 5.0, "train/epoch": 0.5, "train/lr": 0.1}, 4)
    return directory


def test_watch_once_prints_the_run_as_it_is(call, run):
    code, out, _ = call("watch", run, "--once")
    assert code == 0
    assert "4 of 8" in out
    assert "5.000" in out


def test_watch_ends_when_the_run_of_another_process_ends(call, run, monkeypatch):
    seen, read = threading.Event(), RunWatcher.read
    monkeypatch.setattr(RunWatcher, "read", lambda watcher: (read(watcher), seen.set())[0])

    def end() -> None:
        seen.wait(60)
        run.worker_journal().metrics({"train/loss": 3.0}, 8)
        run.journal("driver").finish("FINISHED")

    other = threading.Thread(target=end)
    other.start()
    code, out, _ = call("watch", run, "--every=0.2")
    other.join()
    assert code == 0
    assert out.count("learning rate") >= 2
    assert out.index("starting") < out.index("finished")


def test_watch_with_json_prints_one_line(call, run):
    code, out, _ = call("watch", run, "--json")
    found = json.loads(out)
    assert (code, found["step"], found["losses"], found["ended"]) == (0, 4, [5.0], False)


def test_watch_of_no_run_exits_with_2_and_one_line(call, tmp_path):
    code, out, err = call("watch", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 0)
    assert "is not a run directory" in err


def test_watch_follows_a_run_in_a_store_as_far_as_it_is_delivered(call, object_store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = RunDirectory(RemotePath(object_store.uri("runs/one")))
    run.write_config(configs.load("debug"))
    with run.delivering():
        run.journal("driver").params({"name": "one"})
    worker = RunDirectory(run.path, writer="rank0")
    with worker.delivering():
        worker.worker_journal().metrics({"train/loss": 5.0, "train/epoch": 0.5}, 4)
    watcher = RunWatcher(run=run, tail=run.journal_tail())
    assert watcher.read().step == 4
    with worker.delivering():
        worker.worker_journal().metrics({"train/loss": 4.0}, 6)
    assert watcher.read().losses == (5.0, 4.0)
    code, out, _ = call("watch", run.path.uri, "--once")
    assert (code, "6 of 8" in out) == (0, True)
    assert object_store.secret not in out
    assert not run.working.exists()
