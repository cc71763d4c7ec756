"""The record of an experiment: of earlier versions, of no valid form, and results in brief."""

import json
from pathlib import Path

import pytest

from rayface import config as configs
from rayface.experiment.inputs import fingerprint
from rayface.experiment.record import Record, brief
from rayface.files import sha256_of
from rayface.stages import STAGES
from rayface.stages.settings import changed_key, changed_keys


@pytest.mark.parametrize("text", ["[]", '{"stages": []}', "{}", "{", '{"version": 3, "stages": {"a": {}}}'])
def test_record_that_is_no_record_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(ValueError, match=r"experiment.json: cannot be read: .*delete it"):
        Record(tmp_path)


def test_record_of_an_earlier_version_is_read_by_config_key(tmp_path: Path) -> None:
    """Settings and inputs were named by the options of the command line, values as text."""
    settings = {"embeddings": "${emb}", "keep": 0.6, "baseline": ["herding"], "block_size": "64MB", "drop": None}
    stage = {"verb": "prune", "settings": settings, "inputs": {"stage emb": "m", f"data {tmp_path}": "d"}}
    ended = {**stage, "mark": "x", "seconds": 1.0, "result": {}}
    (tmp_path / "experiment.json").write_text(json.dumps({"stages": {"core": ended}}))
    done = Record(tmp_path).finished("core")
    assert done is not None
    wanted = {
        "prune.keep": 0.6,
        "prune.baselines": ["herding"],
        "prune.block_size": 2**26,
        "prune.embeddings": "${emb}",
    }
    assert changed_keys(done.settings, wanted) == []
    assert changed_keys(done.settings, {**wanted, "prune.keep": 0.5}) == ["prune.keep"]
    assert done.inputs == {"stage emb": "m", f"prune.data {tmp_path}": "d"}


def test_record_of_version_2_has_models_by_their_weights_if_they_are_unchanged(tmp_path: Path) -> None:
    """Fingerprints were of the whole model.json."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text('{"sha256": "w"}')
    inputs = {f"evaluate.model {model}": sha256_of(model / "model.json"), "evaluate.model /gone": "x", "stage a": "y"}
    stage = {"verb": "evaluate", "settings": {}, "inputs": inputs}
    (tmp_path / "experiment.json").write_text(json.dumps({"version": 2, "stages": {"scores": stage}}))
    weights = fingerprint("evaluate.model", [str(model)])
    assert Record(tmp_path).inputs("scores") == {**inputs, f"evaluate.model {model}": weights}
    (model / "model.json").write_text('{"sha256": "v"}')
    assert Record(tmp_path).inputs("scores") == inputs


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ([], []),
        (["head.compute_dtype=fp32", "head.margin_value=0.4", "head.scale=64"], []),
        (["head.compute_dtype=bf16", "head.scale=32"], ["head.scale", "head.compute_dtype"]),
        (["head.margin=arcface"], ["head.margin", "head.margin_value"]),
        (["head.name=dcq"], ["head.name", "head.margin_value", "head.scale"]),
        (["head.margin=combined"], ["head.margin", "head.margin_value"]),
    ],
)
def test_settings_of_an_earlier_version_equal_the_defaults_that_they_were(
    overrides: list[str], changed: list[str], tmp_path: Path
) -> None:
    """Presets set the margin's value and scale, and products with class centers were in fp32 by default."""
    former = ["head.compute_dtype=fp32", "head.margin_value=0.4", "head.scale=64"]
    then, now = (
        STAGES["train"].settings(configs.load("glint360k", overrides=["data.train=unused", *given]))
        for given in (former, overrides)
    )
    stages = {"a": {"verb": "train", "settings": then, "inputs": {}}}
    (tmp_path / "experiment.json").write_text(json.dumps({"version": 3, "stages": stages}))
    before = Record(tmp_path).settings("a")
    assert changed_keys(before, json.loads(json.dumps(now))) == changed


def test_changed_key_is_the_first_of_now_and_a_default_only_equals_an_unset_value() -> None:
    """head.scale of cosface is 64 by default; keys of one side alone are of another version."""
    head = {"head.name": "partial_fc", "head.margin": "cosface"}
    before = {"a": None, "gone": 1, **head, "head.scale": 32.0, "b": 1}
    now = {"b": 2, "new": 1, **head, "head.scale": 64.0, "a": 0.5}
    assert changed_key(before, now) == "b"
    assert changed_keys(before, now) == ["b", "head.scale", "a"]
    assert changed_keys({**head, "head.scale": 64.0}, {**head, "head.scale": 32.0}) == ["head.scale"]
    assert changed_keys({**head, "head.scale": 64.0}, {**head, "head.scale": None}) == []
    assert changed_key(now, now) is None


def test_brief_of_a_result_keeps_numbers_and_small_tables() -> None:
    result = {"a": 1, "b": [1], "c": {"x": 0.5}, "d": {"x": [1]}, "e": None, "config": {"x": 1}}
    assert brief(result) == {"a": 1, "c": {"x": 0.5}, "e": None}
