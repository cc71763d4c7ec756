"""The verb watch."""

import json
import threading
import time

import pytest

from rayface import config as configs
from rayface.training.run_directory import RunDirectory


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


def test_watch_ends_when_the_run_of_another_process_ends(call, run):
    def end() -> None:
        time.sleep(0.5)
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
