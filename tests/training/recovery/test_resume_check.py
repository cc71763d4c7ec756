"""Which settings a run can be resumed with: refused before anything is written exactly where loading would fail."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayface import config as configs
from rayface.config import Config
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.synth import synthesize
from rayface.training import trainer
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.recovery.resume_check import check_resumable
from rayface.training.run_directory import RunDirectory

SAMPLE_ORDER = SampleOrder(num_samples=24, batch_size=4)
FACTS = DatasetFacts(name="drawn", digest="d" * 64, licence="none")


def config_of(*overrides: str) -> Config:
    return configs.load("debug", None, ["data.image_size=32", "data.train=unused", "optim.momentum=0", *overrides])


def training(run: Path, config: Config) -> Training:
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    return Training(config, RunDirectory(run), world, SAMPLE_ORDER, num_classes=6, dataset=FACTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint of step 0."""
    run = tmp_path_factory.mktemp("run")
    made = training(run, config_of())
    made.save_checkpoint()
    made.checkpoints.wait()
    return run


@pytest.mark.parametrize(
    ("change", "refused_for"),
    [
        ("optim.momentum=0.9", "optim.momentum: 0.9: the run was started with 0.0, and its checkpoint has no head.mom"),
        ("optim.name=adamw", "optim.name: 'adamw'"),
        ("optim.weight_decay=0.1", ""),
        ("head.margin=adaface", "head.margin: 'adaface': the run was started with 'cosface'"),
        ("head.margin=curricularface", "head.margin: 'curricularface'"),
        ("head.margin=arcface", ""),
        ("head.storage_dtype=bf16", ""),
        ("head.sample_rate=0.5", ""),
        ("head.center_update=dense", ""),
        ("head.host_memory=true", ""),
        ("schedule.name=cosine", ""),
        ("schedule.name=fastface", "schedule.name"),
        ("schedule.name=plateau", "schedule.name"),
        ("backbone.width=0.25", "backbone.width: 0.25: the run was started with 0.5"),
        ("backbone.embedding_size=32", "backbone.embedding_size: 32"),
        ("backbone.name=mbf", "backbone.name: 'mbf'"),
        ("backbone.dropout=0.2", ""),
        ("data.image_size=48", "data.image_size: 48"),
        ("train.seed=3", ""),
    ],
)
def test_resume_with_a_changed_setting_is_refused_exactly_where_loading_fails(run: Path, change: str, refused_for: str):
    config = configs.with_overrides(config_of(), [change])
    refusal, failure = "", ""
    try:
        check_resumable(RunDirectory(run), config, SAMPLE_ORDER)
    except ValueError as error:
        refusal = str(error)
    try:
        training(run, config)
    except BaseException as error:  # DCP's is no Exception
        failure = repr(error)
    assert bool(refusal) == bool(failure), (refusal, failure)
    assert refused_for in refusal
    assert bool(refused_for) == bool(refusal)
    assert "\n" not in refusal


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "ray_session", lambda *args, **options: nullcontext())
    monkeypatch.setattr(trainer, "require_resources", lambda *args: None)


def test_refused_resume_leaves_the_run_as_it_was(run: Path, tmp_path: Path, no_ray: None) -> None:
    synthesize(tmp_path / "faces", identities=6, images_per_identity=4, image_size=32)
    config = config_of(f"data.train={tmp_path / 'faces'}", "train.batch_size=4", f"train.output={run}")
    config = configs.with_overrides(config, {"data.window_images": 4096})
    configs.dump(replace(config, train=replace(config.train, output=None)), run / "config.yaml")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"optim\.momentum: 0\.9: the run was started with 0\.0"):
        trainer.train(configs.with_overrides(config, {"optim.momentum": 0.9}), resume=True)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


class ReachedTheWorkersError(Exception):
    pass


def test_moved_dataset_of_equal_digest_is_resumed_and_another_one_is_refused(
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
    with pytest.raises(ValueError, match=r"faces: no such .*where the data was moved, name .* data\.train=DIR"):
        trainer.train(config, resume=True)
    with pytest.raises(ReachedTheWorkersError):
        trainer.train(configs.with_overrides(config, {"data.train": str(tmp_path / "moved")}), resume=True)
    with pytest.raises(ValueError, match=r"data\.train: digest is .*must not change on a resume"):
        trainer.train(configs.with_overrides(config, {"data.train": str(tmp_path / "others")}), resume=True)
    assert configs.load(file=tmp_path / "run" / "config.yaml").data.train == (str(tmp_path / "moved"),)


def test_finished_run_given_more_epochs_says_what_to_do(tmp_path: Path) -> None:
    for name in ("result.json", "model.safetensors", "model.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"holds a finished run: .*start a new run with backbone\.weights="):
        trainer.train(config_of("train.epochs=9", f"train.output={tmp_path}"), resume=True)


def test_run_with_another_order_of_samples_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match=r"draws its samples in another order .*chunks of 8 images"):
        check_resumable(RunDirectory(run), config_of(), replace(SAMPLE_ORDER, chunk_images=1))
