import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rayface.backbones import build_backbone
from rayface.evaluation import export
from rayface.evaluation.export import export_onnx, load_model, save_model

SIZE = 16


@pytest.fixture(scope="module")
def backbone():
    """A narrow net whose batch norms have seen data."""
    torch.manual_seed(0)
    net = build_backbone("mini", embedding_size=8, image_size=SIZE, width=0.25)
    for _ in range(3):
        net(torch.randn(16, 3, SIZE, SIZE))
    return net.eval()


@pytest.fixture
def run(tmp_path, backbone):
    save_model(
        tmp_path / "run",
        backbone,
        name="mini",
        backbone_args={"width": 0.25},
        image_size=SIZE,
        embedding_size=8,
        licence="research only",
        training_digest="abc123",
        metrics={"accuracy_mean": 0.9},
    )
    return tmp_path / "run"


def test_a_saved_model_comes_back_equal(run, backbone):
    images = torch.randn(3, 3, SIZE, SIZE)
    for path in (run, run / "model.safetensors"):
        model = load_model(path)
        assert not model.module.training
        assert torch.equal(model.module(images), backbone(images))
    assert sorted(path.name for path in run.iterdir()) == ["model.json", "model.safetensors"]
    info = json.loads((run / "model.json").read_text())
    assert info == model.info
    assert info["normalisation"] == "RGB, x / 127.5 - 1"
    assert (info["backbone"], info["embedding_size"], info["image_size"]) == ("mini", 8, SIZE)
    assert (info["licence"], info["training_digest"]) == ("research only", "abc123")
    assert info["metrics"] == {"accuracy_mean": 0.9}


def test_a_model_in_training_and_channels_last_can_be_saved(tmp_path, backbone, run):
    net = build_backbone("mini", embedding_size=8, image_size=SIZE, width=0.25)
    net.load_state_dict(backbone.state_dict())
    net = net.to(memory_format=torch.channels_last).train()
    save_model(
        tmp_path / "other",
        net,
        name="mini",
        backbone_args={"width": 0.25},
        image_size=SIZE,
        embedding_size=8,
        licence="",
        training_digest="",
        metrics={},
    )
    assert net.training
    images = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(load_model(tmp_path / "other").module(images), backbone(images))


def test_a_published_file_needs_the_name_of_its_net(tmp_path):
    net = build_backbone("mini", width=0.25)
    torch.save(net.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="--backbone"):
        load_model(tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match="do not fit mini"):  # at width 1
        load_model(tmp_path / "backbone.pth", backbone="mini")
    torch.save(build_backbone("mini").state_dict(), tmp_path / "backbone.pth")
    model = load_model(tmp_path / "backbone.pth", backbone="mini")
    assert model.module(torch.zeros(1, 3, 112, 112)).shape == (1, 512)
    assert model.info["image_size"] == 112
    assert len(model.info["sha256"]) == 64


def test_wrong_models_are_named(run, tmp_path):
    def refused(words, path=run, **arguments):
        with pytest.raises(ValueError, match=words) as caught:
            load_model(path, **arguments)
        assert "\n" not in str(caught.value)

    refused("no such file", tmp_path / "nowhere")
    refused("contradicts", backbone="r50")
    description = run / "model.json"
    text = description.read_text()
    description.write_text(text.replace('"sha256": "', '"sha256": "0'))
    refused("is not the one")
    description.write_text(text.replace('"image_size"', '"size"'))
    refused("lacks image_size")
    description.write_text("{")
    refused("must be JSON")
    description.unlink()
    refused("beside it")


def test_onnx_gives_what_pytorch_gives_at_any_batch_size(run, backbone, tmp_path):
    out = tmp_path / "new" / "model.onnx"
    result = export_onnx(load_model(run), out)
    assert result["max_abs_error"] < 1e-5
    assert result["opset"] == 18
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for batch_size in (1, 2, 5):
        images = torch.rand(batch_size, 3, SIZE, SIZE) * 2 - 1
        got = session.run(["embedding"], {"image": images.numpy()})[0]
        np.testing.assert_allclose(got, backbone(images).detach().numpy(), rtol=1e-3, atol=1e-4)
    proto = onnx.load(out)
    onnx.checker.check_model(proto)
    assert {entry.version for entry in proto.opset_import if entry.domain == ""} == {18}
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    assert properties["rayface.input"] == f"image float32 (N, 3, {SIZE}, {SIZE}), RGB, x / 127.5 - 1"
    assert properties["rayface.licence"] == "research only"
    assert b"site-packages" not in out.read_bytes()  # nothing of the machine that it was made on


def test_onnx_that_differs_is_not_written(run, tmp_path, monkeypatch):
    proto = export._onnx_model(load_model(run))
    monkeypatch.setattr(export, "_onnx_model", lambda model: proto)
    model = load_model(run)
    with torch.no_grad():
        next(model.module.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx")) + list(tmp_path.glob(".*onnx*"))


def test_onnx_needs_its_extra_and_its_suffix(run, tmp_path, monkeypatch):
    model = load_model(run)
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export_onnx(model, tmp_path / "model.bin")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'rayface\[onnx\]'"):
        export_onnx(model, tmp_path / "model.onnx")
