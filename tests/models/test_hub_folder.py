"""A model as a folder of the Hub: its files, the same embeddings, and what has no weights."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from rayface.hub_card import front_matter
from rayface.models.hub_folder import export_hub
from rayface.models.model_files import LoadedModel, load_model
from rayface.models.onnx_model import OnnxModule
from rayface.storage import DataError
from tests.models.saved_models import random_faces


def test_export_hub_writes_a_folder_that_embeds_like_the_run(run, tmp_path):
    model = load_model(run)
    told = export_hub(model, tmp_path / "hub")
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = load_model(tmp_path / "hub")
    assert np.array_equal(again.embed(random_faces(3)), model.embed(random_faces(3)))
    assert again.info == model.info
    assert told == {"parameters": sum(each.numel() for each in model.module.parameters()), "sha256": again.info.sha256}
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["embedding_size"]) == ("rayface", ["mini"], 8)
    assert load_file(tmp_path / "hub" / "model.safetensors").keys() == model.module.state_dict().keys()
    card = (tmp_path / "hub" / "README.md").read_bytes()
    assert front_matter(card)["license_name"] == "research only"
    assert front_matter(card)["pipeline_tag"] == "image-feature-extraction"
    assert b"| accuracy_mean | 0.9000 |" in card


def test_export_hub_over_an_older_model_replaces_it(run, tmp_path):
    for _ in range(2):
        export_hub(load_model(run), tmp_path / "hub")
    assert load_model(tmp_path / "hub").info.backbone == "mini"


def test_export_hub_of_onnx_or_into_a_file_is_one_line(run, tmp_path):
    model = load_model(run)
    onnx = LoadedModel(module=OnnxModule.__new__(OnnxModule), info=model.info)
    with pytest.raises(DataError, match=r"^export.hub: an ONNX file has no weights"):
        export_hub(onnx, tmp_path / "hub")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"^export.hub: .*file/hub: cannot be written: "):
        export_hub(model, tmp_path / "file" / "hub")
