"""model.json: written and read back, of other versions, missing or incomplete."""

import json

import pytest

from rayface.models.model_info import ModelInfo
from rayface.models.threshold_card import ThresholdRow

THRESHOLDS = '{"backbone": "r50", "backbone_args": {}, "image_size": 112, "embedding_size": 512, "thresholds": %s}'
INFO = ModelInfo(
    backbone="r50",
    backbone_args={"width": 1.0},
    embedding_size=512,
    image_size=112,
    metrics={"accuracy_mean": 0.9},
    thresholds=(ThresholdRow(far="1e-02", threshold=0.3, threshold_interval=(0.2, 0.4)),),
    rayface_version="1",
    sha256="abc",
)


def test_model_info_written_and_read_back_is_equal(tmp_path) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(INFO.as_dict()))
    assert ModelInfo.read(path) == INFO


def test_model_info_of_another_version_leaves_out_unknown_keys_and_fills_missing_ones(tmp_path) -> None:
    path = tmp_path / "model.json"
    needed = {"backbone": "r50", "backbone_args": {}, "embedding_size": 512, "image_size": 112}
    path.write_text(json.dumps({**needed, "precision": "int8"}))
    assert ModelInfo.read(path) == ModelInfo(backbone="r50", embedding_size=512, image_size=112)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"^model .* must have its model\.json beside it; there is none$"),
        ("{", r"must be JSON"),
        ("[1]", r"it lacks backbone$"),
        ('{"backbone": "r50", "backbone_args": {}, "image_size": 112}', r"it lacks embedding_size$"),
        (THRESHOLDS % "null", r"has malformed thresholds: TypeError"),
        (THRESHOLDS % '[{"threshold": 0.5}]', r"has malformed thresholds: KeyError\('far'\)$"),
        (THRESHOLDS % '[{"far": "1e-3", "threshold": "x"}]', r"has malformed thresholds: ValueError"),
    ],
)
def test_model_info_that_is_missing_or_incomplete_raises_one_line(tmp_path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        ModelInfo.read(tmp_path / "model.json")
    assert "\n" not in str(caught.value)
