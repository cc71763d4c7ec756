"""The record of an experiment: of earlier versions, of no valid form, and results in brief."""

import json
from pathlib import Path

import pytest

from rayface.experiment.inputs import fingerprint
from rayface.experiment.record import Record, brief, changed_key
from rayface.files import sha256_of


@pytest.mark.parametrize("text", ["[]", '{"stages": []}', "{}", "{"])
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
    assert changed_key(done.settings, wanted) is None
    assert changed_key(done.settings, {**wanted, "prune.keep": 0.5}) == "prune.keep"
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


def test_brief_of_a_result_keeps_numbers_and_small_tables() -> None:
    result = {"a": 1, "b": [1], "c": {"x": 0.5}, "d": {"x": [1]}, "e": None, "config": {"x": 1}}
    assert brief(result) == {"a": 1, "c": {"x": 0.5}, "e": None}
