"""Workers that die are started again on a real local Ray; what would fail again stops the run."""

import os
import signal
from pathlib import Path

import pytest
import torch

from rayface import config as configs
from rayface.config import Config
from rayface.data.shards import DataError
from rayface.evaluation.export import load_model
from rayface.tracking import read_metrics
from rayface.tracking.journal import RECOVERY, read_records
from rayface.training import trainer
from rayface.training.restarts import restarts
from rayface.training.trainer import train

pytestmark = pytest.mark.usefixtures("local_ray")


def settings(drawn: Path, run: Path) -> Config:
    options = {
        "data.train": str(drawn),
        "data.window_images": 60,
        "train.output": str(run),
        "train.batch_size": 24,
        "train.epochs": 1,
        "train.num_workers": 2,
        "train.checkpoint_every": 4,
        "train.log_every": 1,
        "train.precision": "fp32",
        "backbone.dropout": 0.2,
        "head.sample_rate": 0.5,
        "tracking.enabled": False,
    }
    return configs.with_overrides(configs.load("debug"), options)


def disturbed(monkeypatch: pytest.MonkeyPatch, trouble: object) -> None:
    """Have `trouble(training, step)` called in the workers before every step."""
    worker = trainer.train_worker

    def train_with_trouble(job: dict[str, object]) -> None:  # nested: travels to the workers by value
        from rayface.training.loop import Training

        step_of = Training.train_step

        def train_step(self: Training, batch: object) -> object:
            trouble(self, batch.step)
            return step_of(self, batch)

        Training.train_step = train_step
        worker(job)

    monkeypatch.setattr(trainer, "train_worker", train_with_trouble)


def test_a_killed_worker_costs_time_and_nothing_else(drawn, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(settings(drawn, whole))

    def kill_once(training, step):
        marker = training.run / "killed"
        if step == 6 and training.world.rank == 1 and not marker.exists():
            marker.touch()
            training.checkpoints.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    disturbed(monkeypatch, kill_once)
    train(settings(drawn, killed))
    a, b = (read_metrics(run / "journal")["train/loss"] for run in (whole, killed))
    assert [(step, loss) for step, loss, _ in a] == [(step, loss) for step, loss, _ in b]
    assert [step for step, _, _ in b] == list(range(1, 11))
    a, b = (load_model(run).module.state_dict() for run in (whole, killed))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(restarts(killed)) == 1
    records = [record for record, _ in read_records(killed / "journal" / "rank0.jsonl", 0)]
    (told,) = [r["values"][RECOVERY] for r in records if r["kind"] == "tags" and RECOVERY in r["values"]]
    assert "goes on from step 4" in told
    assert told in (killed / "faults.log").read_text()
    assert read_metrics(killed / "journal")["train/restarts"][-1][1] == 1


def test_what_would_fail_again_is_not_tried_again(drawn, tmp_path, monkeypatch):
    def fail(training, step):
        from rayface.data.shards import DataError

        raise DataError("too many damaged samples")

    disturbed(monkeypatch, fail)
    with pytest.raises(DataError, match=r"^too many damaged samples$"):
        train(settings(drawn, tmp_path / "run"))
    assert restarts(tmp_path / "run") == []
