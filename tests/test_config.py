"""The config tree: what is refused, what is resolved, and that a resolved config reads back."""

import pickle
from pathlib import Path

import pytest
import yaml

from rayface import config
from rayface.config import Config
from rayface.presets import PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_load_of_every_preset_resolves_and_reads_back(preset, tmp_path):
    resolved = config.load(preset)
    config.dump(resolved, tmp_path / "config.yaml")
    assert config.load(file=tmp_path / "config.yaml") == resolved
    assert config.from_dict(config.to_dict(resolved)) == resolved


def test_load_of_preset_file_and_overrides_takes_the_last_value(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump({"optim": {"lr": 0.2}, "head": {"sample_rate": 0.3}}))
    resolved = config.load("webface42m", file, ["head.sample_rate=0.1", "data.train=[a, b]", "optim.weight_decay=1e-4"])
    assert resolved.backbone.name == "r100"
    assert resolved.optim.lr == 0.2
    assert resolved.head.sample_rate == 0.1
    assert resolved.data.train == (str(Path("a").absolute()), str(Path("b").absolute()))
    assert resolved.optim.weight_decay == 1e-4


def test_with_overrides_of_a_mapping_leaves_the_original():
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
        (["train.epochs=1:30"], "train.epochs: '1:30': input should be a valid number"),
        (["train.batch_size=0x10"], "train.batch_size: '0x10': input should be a valid integer"),
        (["train.batch_size=true"], "train.batch_size: true: input should be a valid integer"),
        (["data.train=[a"], "data.train: '[a': must be a directory, or several as '[a,b]'"),
        (["data.train="], "data.train: '': must be a directory"),
        (["data.train=['']"], "data.train: '': must be a path"),
        (["name="], "name: '': string should have at least 1 character"),
        (["synth.image_size=17"], "synth.image_size: 17: input should be a multiple of 2"),
        (["synth.image_size=512"], "synth.image_size: 512: input should be less than or equal to 256"),
        (["synth.pairs=30"], "synth.pairs: 30: input should be a multiple of 20"),
        (["synth.identities=1000001"], "synth.identities: 1000001: input should be less than or equal to 1000000"),
        (["synth.images_per_identity=10001"], "synth.images_per_identity: 10001: input should be less than or equal"),
        (["head.margin_options=m1"], "head.margin_options: 'm1': must be keys and values"),
    ],
)
def test_load_with_bad_overrides_is_one_line_that_names_the_key(overrides, message):
    with pytest.raises(ValueError, match=r".") as caught:
        config.load("mini", None, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_of_a_bad_file_or_preset_is_refused(tmp_path):
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


NAMES = ["f #2", "no", "0100", "1:30", "2024-01-01", "null", "a: b", "'q'", "a,b", " x "]


@pytest.mark.parametrize("name", NAMES)
def test_load_of_text_keys_takes_them_as_they_stand(name):
    given = config.load(overrides=[f"name={name}", f"data.train={name}", f"tracking.experiment={name}"])
    assert (given.name, given.tracking.experiment) == (name, name)
    assert given.data.train == (str(Path.cwd() / name),)


def test_load_of_numbers_with_leading_zeros_reads_them_as_decimal():
    given = config.load(overrides=["train.batch_size=0100", "train.epochs=010", "schedule.milestones=[08, 1e1]"])
    assert (given.train.batch_size, given.train.epochs, given.schedule.milestones) == (100, 10, (8, 10))


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_load_of_null_for_an_optional_key_is_none(text):
    given = config.load(overrides=["train.teacher=/t", "optim.clip_norm=3"])
    given = config.with_overrides(given, [f"train.teacher={text}", f"optim.clip_norm={text}"])
    assert (given.train.teacher, given.optim.clip_norm) == (None, None)


def test_load_of_a_yaml_file_types_values_by_their_field(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(
        "name: no\ndata: {train: [2024-01-01, 0100]}\n"
        "train: {batch_size: 0100, static_graph: no, num_workers: [1, 2]}\n"
        "head: {margin_options: {m1: 1, gradient: exact}}\noptim: {clip_norm: }\nbackbone.width: .5\n"
    )
    given = config.load(file=file)
    assert (given.name, given.train.batch_size, given.train.static_graph) == ("no", 100, False)
    assert given.data.train == (str(Path.cwd() / "2024-01-01"), str(Path.cwd() / "0100"))
    assert given.head.margin_options == {"m1": 1, "gradient": "exact"}
    assert (given.optim.clip_norm, given.backbone.width, given.train.num_workers) == (None, 0.5, (1, 2))
    config.dump(given, tmp_path / "again.yaml")
    assert config.load(file=tmp_path / "again.yaml") == given


@pytest.mark.parametrize(
    "text", ["optim: {lr: 1}\noptim: {lr: 2}", "optim: {lr: 1, lr: 2}", "optim: {lr: 1}\noptim.lr: 2"]
)
def test_load_of_a_file_with_a_key_given_twice_is_refused(tmp_path, text):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"my.yaml: (line \d: )?(optim|lr|optim.lr): is given twice") as caught:
        config.load(file=file)
    assert "\n" not in str(caught.value)


def test_load_of_relative_paths_makes_them_absolute(tmp_path, monkeypatch):
    keys = [
        "backbone.weights",
        "train.teacher",
        "train.teacher_cache",
        "train.output",
        "evaluate.pairs",
        "prune.embeddings",
        "prune.out",
    ]
    monkeypatch.chdir(tmp_path)
    given = config.load(overrides=[*(f"{key}=x" for key in keys), "data.train=[x,s3://b/x,~/x]", "evaluate.data=x"])
    monkeypatch.chdir("/")
    flat = config.flat(config.from_dict(config.to_dict(given)))
    assert [flat[key] for key in keys] == [str(tmp_path / "x")] * len(keys)
    assert flat["evaluate.data"] == [str(tmp_path / "x")]
    assert flat["data.train"] == [str(tmp_path / "x"), "s3://b/x", str(Path.home() / "x")]


@pytest.mark.parametrize(
    "key",
    [
        *("train.output", "embed.model", "evaluate.model", "export.model", "evaluate.ijb", "prune.embeddings"),
        *("data.train", "convert.source", "evaluate.data", "embed.data"),
    ],
)
def test_load_of_a_path_equals_that_of_its_text(tmp_path, key):
    path = tmp_path / "[odd, name"
    expected = config.value_of(config.to_dict(config.load(overrides={key: f"{path}"})), key)
    assert str(path) in (expected, *expected)
    assert config.value_of(config.to_dict(config.load(overrides={key: path})), key) == expected
    if isinstance(expected, list):
        both = config.load(overrides={key: [path, "s3://b/x"]})
        assert config.value_of(config.to_dict(both), key) == [str(path), "s3://b/x"]


def test_load_of_a_file_by_text_path_or_uri_is_the_same(tmp_path, object_store):
    file = tmp_path / "my.yaml"
    file.write_text("optim: {lr: 0.25}")
    object_store.put("my.yaml", file.read_bytes())
    for given in (file, str(file), f"file://{file}", object_store.uri("my.yaml")):
        assert config.load("mini", given).optim.lr == 0.25


def test_load_of_a_key_like_no_other_names_the_groups_and_the_page_of_keys():
    with pytest.raises(ValueError, match=r"^xyz: is not a config key: .* data, backbone, .*: see docs/\S+$") as refused:
        config.load(overrides=["xyz=1"])
    page = Path(__file__).parents[1] / str(refused.value).rpartition(" ")[2]
    assert "[Config keys](../rayface/config)" in page.read_text()


def test_load_of_a_file_in_a_store_masks_its_credentials(tmp_path, monkeypatch):
    (tmp_path / "my.yaml").write_text("train: {epocs: 3}")
    monkeypatch.setattr(config.loading, "local_copy", lambda file: tmp_path / "my.yaml")
    with pytest.raises(ValueError, match=r"^train\.epocs: is not a config key") as refused:
        config.load(file="s3://KEY:PL4NTED@bucket/my.yaml")
    assert "PL4NTED" not in str(refused.value)


def test_override_texts_of_a_mapping_give_the_same_config(tmp_path):
    overrides = {
        "data.train": [tmp_path / "a, b", "s3://b/x"],
        "train.output": tmp_path,
        "optim.lr": 1e-7,
        "train.epochs": 3,
        "data.flip": False,
        "head.scale": None,
        "head.margin_options": {"m1": 1},
        "data": {"shift": 2},
    }
    texts = config.override_texts(overrides)
    assert config.load(overrides=texts) == config.load(overrides=overrides)
    assert config.override_texts(texts) == texts


def test_load_of_one_margin_option_keeps_the_others():
    given = config.load(overrides=["head.margin_options={m1: 1, m2: .3}", "head.margin_options.m2=0.2"])
    assert given.head.margin_options == {"m1": 1, "m2": 0.2}
    assert config.load(overrides=["convert.options.image_size=null"]).convert.options == {"image_size": None}


def test_load_against_the_rule_of_a_group_names_its_keys_without_values():
    with pytest.raises(ValueError, match=r"^prune: threshold, keep: both are given: must be one of the two"):
        config.load(overrides=["prune.keep=0.5", "prune.threshold=0.5"])


def test_descriptions_cover_every_config_key():
    """They are the help texts of the command line."""
    described = config.descriptions()
    assert described.keys() == config.flat(Config()).keys()
    assert [key for key, text in described.items() if not text.endswith(".")] == []
    assert [key for key, text in described.items() if "None:" in text] == []  # the value is written as null


def test_error_of_a_key_that_is_not_set_survives_another_process():
    error = config.KeyNotSetError("embed.out", "--out")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.key, copy.option) == (str(error), "embed.out", "--out")
