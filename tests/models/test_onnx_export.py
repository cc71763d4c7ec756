"""ONNX export against PyTorch."""

import copy
import json
import os
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import read_samples
from rayface.embedding.embedder import load_embedder
from rayface.models import onnx_export
from rayface.models.model_files import load_model, write_metrics
from rayface.models.onnx_export import export_onnx
from tests.models.saved_models import SIZE, random_faces


def real_faces(faces, count):
    dataset = open_dataset(faces / "lfw_pairs")
    samples = read_samples(dataset.shard_paths(), dataset.index.select(np.arange(count)))
    return decode_images([sample.jpeg for sample in samples], SIZE)[0]


@pytest.fixture(scope="module")
def traced(backbone):
    return onnx_export._traced(backbone, torch.zeros(2, 3, SIZE, SIZE))


@pytest.fixture(autouse=True)
def trace_once(traced, monkeypatch):
    """All tests export the same net: tracing it takes seconds."""
    monkeypatch.setattr(onnx_export, "_traced", lambda module, images: copy.deepcopy(traced))


def test_export_onnx_at_any_batch_size_equals_pytorch(run, backbone, tmp_path):
    out = tmp_path / "new" / "model.onnx"
    result = export_onnx(load_model(run), out)
    assert result["max_abs_error"] < 1e-5
    assert result["opset"] == 18
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx", "model_card.md"]
    assert 'load_model("model.onnx")' in (out.parent / "model_card.md").read_text()
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
    assert properties["rayface.output"] == "embedding float32 (N, 8), raw"
    assert properties["rayface.licence"] == "research only"
    assert properties["rayface.sha256"] == json.loads((run / "model.json").read_text())["sha256"]
    exported, weights = load_embedder(out), load_embedder(run)
    assert (exported.weights, weights.weights) == (weights.digest, None)
    assert exported.digest != weights.digest
    assert b"site-packages" not in out.read_bytes()  # nothing of the machine that it was made on


def test_export_onnx_with_external_data_writes_the_weights_beside(run, backbone, tmp_path):
    out = tmp_path / "new" / "big.onnx"
    result = export_onnx(load_model(run), out, external_data=True)
    assert result["external_data"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["big.onnx", "big.onnx.data", "model_card.md"]
    assert (out.parent / "big.onnx.data").stat().st_size > out.stat().st_size
    assert result["num_bytes"] == sum(path.stat().st_size for path in out.parent.glob("big*"))
    images = random_faces(2)
    np.testing.assert_allclose(load_model(out).embed(images), load_model(run).embed(images), atol=1e-5)


def test_export_onnx_interrupted_between_weights_and_graph_leaves_no_mixed_model(run, tmp_path, monkeypatch):
    out, publish = tmp_path / "new" / "big.onnx", onnx_export.publish
    export_onnx(load_model(run), out, external_data=True)

    def interrupted(temporary, path):
        if path == out:
            raise KeyboardInterrupt
        publish(temporary, path)

    with monkeypatch.context() as patched:
        patched.setattr(onnx_export, "publish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_onnx(load_model(run), out, external_data=True)
    assert not out.exists()
    export_onnx(load_model(run), out, external_data=True)
    assert sorted(path.name for path in out.parent.iterdir()) == ["big.onnx", "big.onnx.data", "model_card.md"]


def test_export_onnx_beside_folders_of_killed_exports_deletes_the_old_ones(run, tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)  # as in a container that is started again
    out = tmp_path / "new"
    for name in (".m.onnx.7.tmp", ".m.onnx.01234567.tmp", ".m.onnx.76543210.tmp"):
        (out / name).mkdir(parents=True)
        (out / name / "m.onnx").touch()
    os.utime(out / ".m.onnx.01234567.tmp", (1, 1))
    export_onnx(load_model(run), out / "m.onnx")
    left = {path.name for path in out.iterdir()}
    assert left == {".m.onnx.7.tmp", ".m.onnx.76543210.tmp", "m.onnx", "model_card.md"}


def test_export_onnx_on_real_faces_equals_pytorch(faces, run, tmp_path):
    images = real_faces(faces, 24)
    export_onnx(load_model(run), tmp_path / "model.onnx")
    wanted, got = (load_model(path).embed(images) for path in (run, tmp_path / "model.onnx"))
    assert np.abs(got - wanted).max() < 1e-5
    assert np.abs(wanted[0] - wanted[1:]).max() > 1e-2  # other faces, other embeddings


def test_export_onnx_that_differs_from_pytorch_is_not_written(run, tmp_path):
    model = load_model(run)
    with torch.no_grad():
        next(model.module.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx")) + list(tmp_path.glob(".*onnx*"))  # nor is its folder left


def test_export_onnx_without_its_extra_or_suffix_raises(run, tmp_path, monkeypatch):
    model = load_model(run)
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export_onnx(model, tmp_path / "model.bin")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'rayface\[onnx\]'"):
        export_onnx(model, tmp_path / "model.onnx")


def test_exported_onnx_file_of_a_measured_model_holds_its_thresholds(run, tmp_path):
    write_metrics(run, {"threshold_at_far": {"1e-03": 0.25}, "threshold_at_far_interval": {"1e-03": [0.2, 0.3]}})
    export_onnx(load_model(run), tmp_path / "model.onnx")
    assert load_model(tmp_path / "model.onnx").info.thresholds == load_model(run).info.thresholds
    assert len(load_model(run).info.thresholds) == 1
    assert "| 1e-03 | 0.2500 [0.2000, 0.3000] | - |" in (tmp_path / "model_card.md").read_text()


def test_exported_onnx_file_loaded_is_a_model_like_any_other(run, tmp_path):
    out = tmp_path / "model.onnx"
    export_onnx(load_model(run), out)
    model = load_model(out)
    assert (model.info.backbone, model.info.embedding_size, model.info.image_size) == ("mini", 8, SIZE)
    assert (model.info.licence, model.info.training_digest) == ("research only", "abc123")
    images = random_faces(5)
    np.testing.assert_allclose(model.embed(images, batch_size=2), load_model(run).embed(images), atol=1e-5)
    np.testing.assert_allclose(load_embedder(out)(images), load_embedder(run)(images), atol=1e-5)
    with pytest.raises(ValueError, match="is already in ONNX"):
        export_onnx(model, tmp_path / "again.onnx")
    out.write_bytes(b"no protobuf")
    with pytest.raises(ValueError, match=r"cannot be read by onnxruntime") as caught:
        load_model(out)
    assert "\n" not in str(caught.value)
