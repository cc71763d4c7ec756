"""The driver of a training run without Ray: what it refuses, what it writes before workers start."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayface import config as configs
from rayface.data.synth import synthesize
from rayface.interrupts import Terminated
from rayface.tracking.journal import read_records
from rayface.training import fit, resources, trainer
from rayface.training.recovery import placement_groups
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.run_directory import RunDirectory
from rayface.training.validate import ValidRun, open_run
from tests.training.small_run import config_of


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "ray_session", lambda *args, **options: nullcontext())
    monkeypatch.setattr(resources, "require_resources", lambda *args: None)
    monkeypatch.setattr(placement_groups, "remove_orphaned_placement_groups", lambda: None)


def test_refused_resume_leaves_the_run_as_it_was(started_run: Path, tmp_path: Path, no_ray: None) -> None:
    synthesize(tmp_path / "faces", identities=6, images_per_identity=4, image_size=32)
    config = config_of(f"data.train={tmp_path / 'faces'}", "train.batch_size=4", f"train.output={started_run}")
    config = configs.with_overrides(config, {"data.window_images": 4096})
    configs.dump(replace(config, train=replace(config.train, output=None)), started_run / "config.yaml")
    before = {path: path.read_bytes() for path in started_run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"optim\.momentum: 0\.9: the run was started with 0\.0"):
        trainer.train(configs.with_overrides(config, {"optim.momentum": 0.9}), resume=True)
    after = {path: path.read_bytes() for path in started_run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_train_or_resume_starts_resumes_or_returns_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []

    def train(config: object, *, resume: bool) -> SimpleNamespace:
        called.append(resume)
        return SimpleNamespace(as_dict=lambda: {"steps": 3})

    monkeypatch.setattr(trainer, "train", train)
    config = config_of(f"train.output={tmp_path / 'run'}")
    assert trainer.train_or_resume(config) == {"steps": 3}
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_config(config)
    assert trainer.train_or_resume(config) == {"steps": 3}
    for name in ("model.safetensors", "model.json"):
        (run.path / name).write_text("{}")
    run.write_result({"steps": 5})
    assert trainer.train_or_resume(config) == {"steps": 5}
    with pytest.raises(ValueError, match=r"train\.output: is not set"):
        trainer.train_or_resume(configs.load("debug"))
    assert called == [False, True]


class ReachedTheWorkersError(Exception):
    pass


def test_resume_with_a_moved_dataset_of_equal_digest_trains_and_with_another_raises(
    tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*args: object, **options: object) -> None:
        raise ReachedTheWorkersError

    monkeypatch.setattr(trainer, "_train_in", reached)
    synthesize(tmp_path / "faces", identities=6, images_per_identity=4, image_size=32)
    synthesize(tmp_path / "others", identities=6, images_per_identity=4, image_size=32, seed=1)
    config = config_of(f"data.train={tmp_path / 'faces'}", "train.batch_size=4", f"train.output={tmp_path / 'run'}")
    with pytest.raises(ReachedTheWorkersError):
        trainer.train(config)
    (tmp_path / "faces").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"faces: no such .*if the data was moved, resume with .* data\.train=DIR"):
        trainer.train(config, resume=True)
    with pytest.raises(ReachedTheWorkersError):
        trainer.train(configs.with_overrides(config, {"data.train": str(tmp_path / "moved")}), resume=True)
    with pytest.raises(ValueError, match=r"data\.train: digest is .*must not change on a resume"):
        trainer.train(configs.with_overrides(config, {"data.train": str(tmp_path / "others")}), resume=True)
    assert configs.load(file=tmp_path / "run" / "config.yaml").data.train == (str(tmp_path / "moved"),)


def test_resume_of_a_finished_run_with_more_epochs_raises_what_to_do(tmp_path: Path) -> None:
    for name in ("result.json", "model.safetensors", "model.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"holds a finished run: .*start a new run with backbone\.weights="):
        trainer.train(config_of("train.epochs=9", f"train.output={tmp_path}"), resume=True)


def test_train_of_a_new_run_writes_config_faults_and_journal_before_its_workers_start(
    tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers are in place of Ray's: they leave an outcome."""
    synthesize(tmp_path / "faces", identities=6, images_per_identity=4, image_size=32)
    options = ["train.batch_size=4", f"train.output={tmp_path / 'run'}", "tracking.enabled=false"]
    config = config_of(f"data.train={tmp_path / 'faces'}", *options)

    def work(run: RunDirectory, valid: ValidRun, *, held_cpus: float) -> None:
        assert held_cpus == 2.5
        assert run.read_config().train.batch_size == 4
        assert (run.path / "data.json").exists()
        assert (run.path / "faults.log").read_text() == ""
        run.write_outcome({"steps": valid.total_steps, "faults": 0, "loss": 1.5})

    monkeypatch.setattr(fit, "fit", work)
    total_steps = open_run(config).total_steps
    result = trainer.train(config, held_cpus=2.5)
    assert (result.steps, result.loss, result.tracking) == (total_steps, 1.5, None)
    run = RunDirectory(tmp_path / "run")
    assert run.read_result()["loss"] == 1.5
    records = [record for record, _ in read_records(run.path / "journal" / "driver.jsonl", 0)]
    params = next(record["values"] for record in records if record["kind"] == "params")
    assert (params["dataset.num_classes"], params["dataset.num_images"]) == ("6", "24")
    assert float(params["optim.momentum"]) == 0
    tags = next(record["values"] for record in records if record["kind"] == "tags")
    assert tags["run_directory"] == str(run)


@pytest.mark.parametrize("place", ["fit.fit", "trainer.write_results"])
def test_train_terminated_before_or_after_its_workers_train_names_the_command_to_resume(
    tmp_path: Path, no_ray: None, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def terminate(*args: object, **options: object) -> None:
        raise Terminated

    monkeypatch.setattr(fit, "fit", lambda *args, **options: None)
    monkeypatch.setattr(f"rayface.training.{place}", terminate)
    synthesize(tmp_path / "faces", identities=6, images_per_identity=4, image_size=32)
    options = ["train.batch_size=4", f"train.output={tmp_path / 'run'}", "tracking.enabled=false"]
    with pytest.raises(TrainingInterruptedError, match=r"resume with: .* --resume train\.output=.*run") as error:
        trainer.train(config_of(f"data.train={tmp_path / 'faces'}", *options))
    assert error.value.exit_code == 143
