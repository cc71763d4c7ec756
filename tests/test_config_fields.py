"""Types of config fields: how a value is read, and the marks on them."""

import pytest

from rayface import config
from rayface.config_fields import parse_bytes


@pytest.mark.parametrize(("text", "bounds"), [("2", (2, 2)), ("[1, 3]", (1, 3))])
def test_num_workers_as_a_number_or_a_range_gives_least_and_most(text, bounds):
    loaded = config.load(overrides=[f"train.num_workers={text}"])
    assert (loaded.train.min_workers, loaded.train.max_workers) == bounds
    assert config.from_dict(config.to_dict(loaded)) == loaded


@pytest.mark.parametrize("text", ["0", "[3, 2]", "[1]", "[1, 2.5]", "many", "true"])
def test_num_workers_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=r"^train.num_workers: .*must be a number of workers above 0"):
        config.load(overrides=[f"train.num_workers={text}"])


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///a/b.db?x=1", "sqlite:///HERE/a/b.db?x=1"),
        ("sqlite:////a.db", "sqlite:////a.db"),
        ("sqlite:///~/m.db", "sqlite:///HERE/m.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("http://server:5000", "http://server:5000"),
    ],
)
def test_tracking_uri_of_a_sqlite_file_is_made_absolute(tmp_path, monkeypatch, uri, absolute):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.load(overrides=[f"tracking.uri={uri}"]).tracking.uri == absolute.replace("HERE", str(tmp_path))


def test_options_of_lists_and_nested_keys_have_values_of_their_types():
    text = "{flag: False, on: true, sizes: [1, 2.5, a], nested: {a: 1, b: {c: null}}, name: x, none: ~}"
    options = config.load(overrides=[f"head.options={text}"]).head.options
    assert options == {
        "flag": False,
        "on": True,
        "sizes": [1, 2.5, "a"],
        "nested": {"a": 1, "b": {"c": None}},
        "name": "x",
        "none": None,
    }
    assert options["flag"] is False
    again = config.from_dict(config.to_dict(config.load(overrides=[f"head.options={text}"])))
    assert again.head.options == options


def test_marked_fields_are_the_keys_that_a_run_keeps_and_shows():
    """They decide what may change on a resume, what a fingerprint holds, and what a checkpoint shows."""
    assert sorted(config.FIXED) == [
        "backbone.embedding_size",
        "backbone.name",
        "backbone.width",
        "data.chunk_images",
        "data.image_size",
        "data.join",
        "data.weights",
        "data.window_images",
        "head.name",
        "head.options",
        "optim.name",
        "train.batch_size",
        "train.ema",
        "train.seed",
    ]
    trained = {key for key in config.OPERATIONAL if key.partition(".")[0] in config.TRAINING}
    assert sorted(trained) == [
        "data.cache_size",
        "data.readers",
        "evaluate.cache",
        "evaluate.every",
        "evaluate.out",
        "name",
        "tracking.enabled",
        "tracking.experiment",
        "tracking.prometheus",
        "tracking.tensorboard",
        "tracking.timeout",
        "tracking.uri",
        "tracking.wandb",
        "train.checkpoint_every",
        "train.cpus_per_worker",
        "train.device",
        "train.grace_seconds",
        "train.hang_timeout",
        "train.keep_checkpoints",
        "train.log_every",
        "train.max_failures",
        "train.mirror_every",
        "train.num_workers",
        "train.output",
        "train.teacher_cache",
        "train.wait_for_nodes",
    ]
    assert config.SHOWN[:2] == ("name", "backbone.name")
    assert len(config.SHOWN) == 11


@pytest.mark.parametrize(
    ("text", "value"),
    [("256MB", 256 * 2**20), ("256MiB", 256 * 2**20), ("1g", 2**30), ("1000", 1000), ("5KB", 5120), ("80b", 80)],
)
def test_parse_bytes_with_any_unit_returns_bytes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["80", " 256 ", "999"])
def test_parse_bytes_of_a_small_number_without_unit_asks_for_the_unit(text):
    with pytest.raises(ValueError, match="has no unit: give one"):
        parse_bytes(text)
