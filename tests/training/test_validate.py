"""What is refused before Ray starts."""

from pathlib import Path

import pytest

from rayface import config as configs
from rayface.config import Config
from rayface.data.synth import synthesize
from rayface.training.run_directory import RunDirectory
from rayface.training.validate import check_settings, dry_run, open_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validate") / "set"
    synthesize(folder, identities=4, images_per_identity=4, image_size=32)
    return folder


def config_of(data: Path, *overrides: str) -> Config:
    return configs.with_overrides(configs.load("debug"), [f"data.train={data}", "train.batch_size=4", *overrides])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.static_graph=true train.max_batch_per_worker=2", r"gradient accumulation \(2 micro-batches a step\)"),
        (
            "train.static_graph=true backbone.compile=true",
            "cannot be combined with backbone.compile: choose one of them",
        ),
        ("evaluate.pairs=pairs.csv", "evaluate.pairs: requires evaluate.data"),
        ("head.name=none", "head.name 'none' must be one of dcq"),
    ],
)
def test_check_settings_of_a_bad_value_is_one_line(data: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        check_settings(config_of(data, *change.split()))
    assert "\n" not in str(refused.value)


def test_open_run_of_a_new_run_counts_its_steps_and_makes_nothing(data: Path, tmp_path: Path) -> None:
    config = config_of(data, "train.epochs=3", f"train.output={tmp_path / 'run'}")
    valid = open_run(config)
    assert valid.total_steps == dry_run(config) == 12
    assert valid.data_facts.num_images == 16
    assert not (tmp_path / "run").exists()


def test_open_run_with_weights_counts_the_drawn_images(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    synthesize(other, identities=4, images_per_identity=8, image_size=32, seed=1)
    config = config_of(data, f"data.train=[{data},{other}]", "train.epochs=1", "data.join=separate")
    assert dry_run(config) == 12
    assert dry_run(configs.with_overrides(config, ["data.weights=[2,0.5]"])) == 12  # 32 of 16, and 16 of 32
    assert dry_run(configs.with_overrides(config, ["data.weights=[1,0.25]"])) == 6
    with pytest.raises(ValueError, match=r"data.weights: \[1.0\]: must be one for each of the 2 of data.train"):
        open_run(configs.with_overrides(config, ["data.weights=[1]"]))


def test_open_run_with_copies_of_shards_that_are_on_a_disk_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match=r"^data.cache_size: 1024: all shards are on a disk already: leave it out$"):
        open_run(config_of(data, "data.cache_size=1KB"))


def test_open_run_of_a_resume_on_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    config = config_of(data, f"train.output={tmp_path}")
    run.write_config(config)
    run.write_data_facts({"digest": "another", "num_images": 16, "num_classes": 4, "join": None})
    with pytest.raises(
        ValueError, match=r"data.train: digest is .*, the run was started with another: must not change"
    ):
        open_run(config, resume=True)


def test_open_run_of_a_resume_while_the_run_is_at_work_is_refused(data: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    config = config_of(data, f"train.output={tmp_path}")
    run.write_config(config)
    with run.exclusive(), pytest.raises(ValueError, match=r"train.output: .* another process owns it"):
        open_run(config, resume=True)
