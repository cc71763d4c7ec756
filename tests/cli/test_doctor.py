"""The verb doctor."""

import json

import pytest

from rayface import config as configs
from rayface.storage import RemotePath
from rayface.training.doctor.checks import Check
from rayface.training.doctor.diagnosis import Diagnosis
from rayface.training.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    write(directory)
    return directory


def write(run: RunDirectory) -> None:
    run.write_config(configs.load("debug", None, ["optim.lr=1"]))
    run.write_data_facts({"num_images": 240, "num_classes": 20})
    run.journal("driver").params({"dataset.num_classes_with_images": 20})
    run.journal("evaluation").metrics({"train/loss": 5.0, "train/embedding_norm": 8.0}, 10)


def test_doctor_of_a_running_run_prints_checks_and_one_line_of_advice(call, run):
    code, out, err = call("doctor", run)
    assert code == 0
    assert "schedule.warmup_epochs" in out
    assert "wrong" in out
    assert err.splitlines()[-1].startswith("optim.lr: learning rate 1, expected about 0.1")


def test_doctor_with_json_prints_one_line_with_the_key(call, run):
    code, out, _ = call("doctor", run, "--json")
    found = json.loads(out)
    assert (code, found["key"], found["run"]) == (0, "optim.lr", str(run))
    assert {check["name"] for check in found["checks"]} >= {"labels", "loss", "margin"}


def test_doctor_of_no_run_exits_with_2_and_one_line(call, tmp_path):
    code, out, err = call("doctor", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 0)
    assert "is not a run directory" in err


def test_doctor_of_a_run_in_a_store_finds_what_it_finds_on_a_disk(call, run, object_store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    stored = RunDirectory(RemotePath(object_store.uri("runs/one")))
    with stored.delivering():
        write(stored)
    found = [json.loads(call("doctor", path, "--json")[1]) for path in (run, stored.path.uri)]
    assert found[0]["checks"] == found[1]["checks"]
    assert object_store.secret not in found[1]["run"]


def test_doctor_of_a_run_without_a_problem_counts_the_checks_that_need_more_steps(call, run, monkeypatch):
    for verdicts, text in (
        (["ok", "unknown"], "no problem found; 1 check needs more steps"),
        (["unknown", "unknown"], "no problem found; 2 checks need more steps"),
        (["ok", "ok"], "no problem found"),
    ):
        checks = tuple(
            Check(name=str(k), value="-", expected="-", key="k", verdict=each) for k, each in enumerate(verdicts)
        )
        monkeypatch.setattr(
            "rayface.training.doctor.diagnosis.diagnose_directory", lambda _, own=checks: Diagnosis(checks=own)
        )
        assert call("doctor", run)[2].splitlines()[-1] == text
