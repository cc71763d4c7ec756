"""What a trial reports to Ray Tune, with a training that ends as told."""

import json
import math
from types import SimpleNamespace

import pytest
from ray import tune
from ray.exceptions import RayActorError, RayTaskError

from rayface import config as configs
from rayface.progress import show_training
from rayface.session import NoRoomError
from rayface.tracking.journal import read_records
from rayface.training import trainer
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.recovery.rollback import NodesLostError, TrainingStoppedError
from rayface.training.run_directory import RunDirectory
from rayface.tuning import trial
from rayface.tuning.sweep_directory import SweepDirectory


@pytest.fixture
def run_trial(tmp_path, monkeypatch):
    """Run one whose training is the given function; returns what was reported."""

    def run(train, watch=None, values=None):
        reports = []
        monkeypatch.setattr(tune, "report", reports.append)

        def result(config, **options):
            values = train(config, **options)
            return SimpleNamespace(as_dict=lambda: values)

        monkeypatch.setattr(trainer, "train", result)
        job = {"trial": 7, "values": values or {"optim.lr": 0.25}}
        given = {"sweep": SweepDirectory(tmp_path), "base": configs.to_dict(configs.load("debug"))}
        metrics = ["accuracy_mean", "seconds"]
        trial.run_trial(job, **given, metrics=metrics, watch=watch, tags={"a": "b"}, held_cpus=2.0, address="c:1")
        return reports

    return run


def test_trial_trains_with_its_values_and_reports_the_objectives(run_trial, tmp_path):
    asked = {}

    def train(config, **options):
        asked.update(config=config, **options)
        return {"accuracy_mean": 0.9, "seconds": 12.0, "loss": 3.0}

    assert run_trial(train) == [{"state": "COMPLETE", "values": [0.9, 12.0], "seconds": 12.0}]
    assert asked["config"] == configs.load(
        "debug", overrides={"optim.lr": 0.25, "train.output": str(tmp_path / "trials" / "0007")}
    )
    given = (asked["resume"], asked["tags"], asked["held_cpus"], asked["address"])
    name = f"{tmp_path.name} trial 7"
    assert given == (False, {"a": "b", "mlflow.runName": name}, 2.0, "c:1")


@pytest.mark.parametrize(
    ("ending", "report"),
    [
        (
            TrainingStoppedError("the loss of step 3 is nan"),
            {"state": "FAIL", "reason": "the loss of step 3"},
        ),
        (OSError(), {"state": "FAIL", "reason": "OSError"}),
        (TrainingInterruptedError("interrupted", KeyboardInterrupt()), {"state": "PRUNED"}),
        (
            {"accuracy_mean": math.nan, "seconds": 1.0},
            {"state": "FAIL", "reason": "accuracy_mean: is not a finite number"},
        ),
        ({"seconds": 1.0}, {"state": "FAIL", "reason": "accuracy_mean: is not a finite number"}),
        (
            {"accuracy_mean": 0.5, "seconds": math.inf},
            {"state": "FAIL", "reason": "seconds: is not a finite number"},
        ),
    ],
)
def test_trial_that_fails_or_is_interrupted_reports_its_state(run_trial, ending, report):
    def train(config, **options):
        if isinstance(ending, Exception):
            raise ending
        return ending

    (found,) = run_trial(train)
    assert found["state"] == report["state"]
    assert found.get("reason", "").startswith(report.get("reason", ""))


@pytest.mark.parametrize("ending", [NodesLostError("no room\nfor 60 s"), NoRoomError("no room for 60 s")])
def test_trial_whose_nodes_are_gone_reports_that_it_is_lost(run_trial, ending):
    def train(config, **options):
        raise ending

    assert run_trial(train) == [{"state": "LOST", "reason": "no room for 60 s"}]


def test_trial_whose_node_died_raises_for_ray_tune_to_restart_it(run_trial):
    def train(config, **options):
        raise RayActorError

    with pytest.raises(RayActorError):
        run_trial(train)


def test_trial_whose_task_failed_reports_a_failure(run_trial):
    def train(config, **options):
        raise RayTaskError("prune", "a traceback", ValueError("bad data")).as_instanceof_cause()

    assert run_trial(train)[0]["state"] == "FAIL"


def test_trial_that_had_finished_is_not_run_again_and_one_that_had_begun_is_resumed(run_trial, tmp_path):
    run, resumed = tmp_path / "trials" / "0007", []

    def train(config, *, resume, **options):
        resumed.append(resume)
        return {"accuracy_mean": 0.5, "seconds": 1.0}

    (run / "checkpoints").mkdir(parents=True)  # killed before it had a config: begins anew
    run_trial(train)
    (run / "config.yaml").touch()
    run_trial(train)
    assert resumed == [False, True]
    for name in ("model.safetensors", "model.json"):
        (run / name).touch()
    (run / "result.json").write_text(json.dumps({"accuracy_mean": 0.7, "seconds": 2.0}))
    assert run_trial(train)[0]["values"] == [0.7, 2.0]
    assert len(resumed) == 2


def test_watched_metric_is_reported_during_training_but_for_step_0(run_trial, tmp_path):
    def train(config, **options):
        run = RunDirectory(tmp_path / "trials" / "0007")
        with show_training(run.path, run.worker_journal_file, 30):
            journal = run.worker_journal()
            for step in (0, 10, 20):
                journal.metrics({"eval/accuracy": step / 100, "train/loss": 5.0}, step)
            journal.close()
        assert run.read_metrics()
        return {"accuracy_mean": 0.9, "seconds": 1.0}

    *watched, last = run_trial(train, watch="eval/accuracy")
    assert watched == [{"state": "RUNNING", "step": step, "value": step / 100} for step in (10, 20)]
    assert last["state"] == "COMPLETE"


def test_trial_with_a_prune_stage_keeps_its_report_in_the_run_directory(run_trial, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "trials" / "0007")
    core_set = tmp_path / "trials" / "0007_core_set"

    def prune(config):
        core_set.mkdir(parents=True)
        (core_set / "report.html").write_text("<html>")
        return {"keep": 0.5, "out": "x"}

    def train(config, **options):
        with show_training(run.path, run.worker_journal_file, 30):
            return {"accuracy_mean": 0.9, "seconds": 1.0}

    monkeypatch.setitem(trial.STAGES, "prune", SimpleNamespace(run=prune))
    values = {"data.train": str(tmp_path / "faces"), "prune.embeddings": "embeddings", "prune.threshold": 0.5}
    assert run_trial(train, values=values)[0]["state"] == "COMPLETE"
    numbers, record = (record for record, _ in read_records(run.journals / "prune.jsonl", 0))
    assert (numbers["kind"], numbers["step"], numbers["values"]) == ("metrics", 0, {"prune/keep": 0.5})
    assert (record["kind"], record["path"], record["folder"]) == ("artifact", "prune/report.html", "prune")
    assert (run.journals / record["path"]).read_text() == "<html>"


def test_trial_with_a_prune_stage_trains_on_its_core_set(run_trial, tmp_path, monkeypatch):
    asked = {}

    def prune(config):
        asked["prune"] = (config.prune.data, config.prune.out, config.tracking.enabled)
        return {"keep": 0.5}

    def train(config, **options):
        asked["train"] = config.data.train
        return {"accuracy_mean": 0.9, "seconds": 1.0}

    monkeypatch.setitem(trial.STAGES, "prune", SimpleNamespace(run=prune))
    values = {"data.train": str(tmp_path / "faces"), "prune.embeddings": "embeddings", "prune.threshold": 0.5}
    assert run_trial(train, values=values)[0]["state"] == "COMPLETE"
    core_set = str(tmp_path / "trials" / "0007_core_set")
    assert asked == {"prune": ((str(tmp_path / "faces"),), core_set, False), "train": (core_set,)}
