"""The road of a training run with an error that a restart would repeat; for workers that die, see tests/faults."""

from pathlib import Path

import pytest

from rayface import config as configs
from rayface.config import Config
from rayface.storage import DataError
from rayface.training import fit
from rayface.training.run_directory import RunDirectory
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
    worker = fit.train_worker

    def train_with_trouble(job: object) -> None:  # nested: travels to the workers by value
        from rayface.training.train_step import TrainStep

        run_step = TrainStep.run

        def run(self: TrainStep, batch: object, *rest: object, **options: object) -> object:
            trouble(self, batch.step)
            return run_step(self, batch, *rest, **options)

        TrainStep.run = run
        worker(job)

    monkeypatch.setattr(fit, "train_worker", train_with_trouble)


@pytest.mark.long
def test_train_with_an_error_of_the_data_is_not_restarted(drawn, tmp_path, monkeypatch):
    def fail(training, step):
        from rayface.storage import DataError

        raise DataError("too many damaged samples")

    disturbed(monkeypatch, fail)
    with pytest.raises(DataError, match=r"^too many damaged samples$"):
        train(settings(drawn, tmp_path / "run"))
    assert RunDirectory(tmp_path / "run").restarts() == []
