"""The config tree: what is refused, what is resolved, and that a resolved config reads back."""

import pytest
import yaml

from rayface import config
from rayface.config import Config
from rayface.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_and_reads_back(preset, tmp_path):
    resolved = config.load(preset)
    config.dump(resolved, tmp_path / "config.yaml")
    assert config.load(file=tmp_path / "config.yaml") == resolved
    assert config.from_dict(config.to_dict(resolved)) == resolved


def test_preset_then_file_then_overrides(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump({"optim": {"lr": 0.2}, "head": {"sample_rate": 0.3}}))
    resolved = config.load("webface42m", file, ["head.sample_rate=0.1", "data.train=[a, b]", "optim.weight_decay=1e-4"])
    assert resolved.backbone.name == "r100"
    assert resolved.optim.lr == 0.2
    assert resolved.head.sample_rate == 0.1
    assert resolved.data.train == ("a", "b")
    assert resolved.optim.weight_decay == 1e-4


def test_with_overrides_takes_a_mapping_and_leaves_the_original():
    before = Config()
    after = config.with_overrides(before, {"train.epochs": 3, "head.margin_options": {"m1": 1.0}})
    assert (before.train.epochs, after.train.epochs) == (20, 3)
    assert after.head.margin_options == {"m1": 1.0}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head.sample_rat=1"], "did you mean head.sample_rate?"),
        (["head.sample_rate=0"], "head.sample_rate: 0: input should be greater than 0"),
        (["head.sample_rate=1.5"], "less than or equal to 1"),
        (["train=3"], "train: 3: is a group of keys"),
        (["epochs"], "must be key=value"),
        (["train.epochs=many"], "train.epochs: 'many': input should be a valid number"),
        (["train.device=tpu"], "train.device: 'tpu'"),
        (["data.train=3"], "data.train: 3"),
    ],
)
def test_bad_overrides_are_one_line_that_names_the_key(overrides, message):
    with pytest.raises(ValueError, match=r".") as caught:
        config.load("mini", None, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files_and_presets(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("head: [1, 2")
    with pytest.raises(ValueError, match="is not YAML"):
        config.load(file=file)
    with pytest.raises(ValueError, match="cannot be read"):
        config.load(file=tmp_path / "none.yaml")
    file.write_text("heads: {sample_rate: 1}")
    with pytest.raises(ValueError, match=r"heads: is not a config key \(in .*bad.yaml\): did you mean head"):
        config.load(file=file)
    with pytest.raises(ValueError, match="did you mean webface42m"):
        config.load("webface42")


@pytest.mark.parametrize(("text", "bounds"), [("2", (2, 2)), ("[1, 3]", (1, 3))])
def test_workers_are_a_number_or_the_least_and_the_most(text, bounds):
    loaded = config.load(overrides=[f"train.num_workers={text}"])
    assert (loaded.train.min_workers, loaded.train.max_workers) == bounds
    assert config.from_dict(config.to_dict(loaded)) == loaded


@pytest.mark.parametrize("text", ["0", "[3, 2]", "[1]", "[1, 2.5]", "many", "true"])
def test_other_numbers_of_workers_are_refused(text):
    with pytest.raises(ValueError, match=r"^train.num_workers: .*must be a number of workers above 0"):
        config.load(overrides=[f"train.num_workers={text}"])
