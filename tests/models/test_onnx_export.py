import copy
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import rayface
from rayface.backbones import build_backbone
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.random_access import read_samples
from rayface.embedding.embedder import load_embedder
from rayface.models import onnx_export
from rayface.models.model_files import load_model, save_model
from rayface.models.onnx_export import export_onnx

SIZE = 32


def random_faces(count):
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def real_faces(faces, count):
    dataset = open_dataset(faces / "lfw_pairs")
    samples = read_samples(dataset.shard_paths(), dataset.index.select(np.arange(count)))
    return decode_images([sample.jpeg for sample in samples], SIZE)[0]


@pytest.fixture(scope="module")
def backbone():
    """A narrow net whose batch norms have seen data."""
    torch.manual_seed(0)
    net = build_backbone("mini", embedding_size=8, image_size=SIZE, width=0.25)
    for _ in range(3):
        net(torch.randn(16, 3, SIZE, SIZE))
    return net.eval()


@pytest.fixture(scope="module")
def traced(backbone):
    return onnx_export._traced(backbone, torch.zeros(2, 3, SIZE, SIZE))


@pytest.fixture(autouse=True)
def trace_once(traced, monkeypatch):
    """All tests export the same net: tracing it takes seconds."""
    monkeypatch.setattr(onnx_export, "_traced", lambda module, images: copy.deepcopy(traced))


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
    assert sorted(path.name for path in run.iterdir()) == ["model.json", "model.safetensors", "model_card.md"]
    card = (run / "model_card.md").read_text()
    assert "| licence of the training data | research only |" in card
    assert "| digest of the training data | `abc123` |" in card
    assert "| accuracy_mean | 0.9000 |" in card
    assert 'load_model(".")' in card
    info = json.loads((run / "model.json").read_text())
    assert info == model.info.as_dict()
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
    assert model.info.image_size == 112
    assert len(model.info.sha256) == 64


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
    assert b"site-packages" not in out.read_bytes()  # nothing of the machine that it was made on


def test_weights_beside_the_onnx_file(run, backbone, tmp_path):
    out = tmp_path / "new" / "big.onnx"
    result = export_onnx(load_model(run), out, external_data=True)
    assert result["external_data"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["big.onnx", "big.onnx.data", "model_card.md"]
    assert (out.parent / "big.onnx.data").stat().st_size > out.stat().st_size
    assert result["num_bytes"] == sum(path.stat().st_size for path in out.parent.glob("big*"))
    images = random_faces(2)
    np.testing.assert_allclose(load_model(out).embed(images), load_model(run).embed(images), atol=1e-5)


def test_an_onnx_file_is_a_model_like_any_other(run, tmp_path):
    out = tmp_path / "model.onnx"
    export_onnx(load_model(run), out)
    model = load_model(out)
    assert (model.info.backbone, model.info.embedding_size, model.info.image_size) == ("mini", 8, SIZE)
    assert (model.info.licence, model.info.training_digest) == ("research only", "abc123")
    images = random_faces(5)
    np.testing.assert_allclose(model.embed(images, batch_size=2), load_model(run).embed(images), atol=1e-5)
    np.testing.assert_allclose(load_embedder(out)(images), load_embedder(run)(images), atol=1e-5)
    with pytest.raises(ValueError, match="is in ONNX already"):
        export_onnx(model, tmp_path / "again.onnx")
    out.write_bytes(b"no protobuf")
    with pytest.raises(ValueError, match=r"cannot be read by onnxruntime") as caught:
        load_model(out)
    assert "\n" not in str(caught.value)


def onnx_file(path, outputs, *, batch="N", feature_maps=False, kind=onnx.TensorProto.FLOAT):
    """A model whose outputs are sums of its image's channels times 1, 2, ...: {name: D}."""
    helper = onnx.helper
    nodes, initializers = [], []
    nodes.append(helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0))
    initializers.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    for name, length in outputs.items():
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        initializers.append(
            onnx.numpy_helper.from_array(np.arange(3 * length).reshape(3, length).astype(dtype), f"w_{name}")
        )
        nodes.append(helper.make_node("MatMul", ["mean", f"w_{name}"], [name]))
    infos = [helper.make_tensor_value_info(name, kind, [batch, length]) for name, length in outputs.items()]
    if feature_maps:
        infos.insert(0, helper.make_tensor_value_info("image_again", kind, [batch, 3, SIZE, SIZE]))
        nodes.append(helper.make_node("Identity", ["image"], ["image_again"]))
    image = helper.make_tensor_value_info("image", kind, [batch, 3, SIZE, SIZE])
    graph = helper.make_graph(nodes, "net", [image], infos, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_onnx_with_a_fixed_batch_is_fed_in_pieces_of_it(tmp_path):
    fixed = load_model(onnx_file(tmp_path / "fixed.onnx", {"e": 6}, batch=4))
    free = load_model(onnx_file(tmp_path / "free.onnx", {"e": 6}))
    images = random_faces(10)
    for batch_size in (1, 3, 4, 10):
        np.testing.assert_allclose(fixed.embed(images, batch_size=batch_size), free.embed(images), atol=1e-6)


def test_onnx_in_half_precision_is_fed_in_it(tmp_path):
    half = load_model(onnx_file(tmp_path / "half.onnx", {"e": 6}, kind=onnx.TensorProto.FLOAT16))
    assert half.embed(random_faces(2)).dtype == np.float32


def test_onnx_with_several_outputs_gives_the_one_of_vectors_or_the_one_named(tmp_path):
    images = random_faces(3)
    one = load_model(onnx_file(tmp_path / "map.onnx", {"e": 6}, feature_maps=True))
    assert one.embed(images).shape == (3, 6)
    assert load_model(onnx_file(tmp_path / "quality.onnx", {"quality": 1, "e": 6})).info.embedding_size == 6
    two = onnx_file(tmp_path / "two.onnx", {"logits": 9, "e": 6})
    with pytest.raises(ValueError, match=r"several outputs .* logits \(N, 9\), e \(N, 6\): name .*two\.onnx::logits"):
        load_model(two)
    named = load_model(f"{two}::e")
    np.testing.assert_allclose(named.embed(images), one.embed(images), atol=1e-6)
    assert named.info.sha256 != load_model(f"{two}::logits").info.sha256
    with pytest.raises(ValueError, match="'x' is no output of shape"):
        load_model(f"{two}::x")


def test_model_that_gives_nan_is_refused(run):
    model = load_model(run)
    model.module.features.running_mean.fill_(torch.nan)
    with pytest.raises(ValueError, match="gives NaN or infinity for 2 of 2 images, first for image 0"):
        model.embed(random_faces(2))


def test_arcface_torch_checkpoint_of_another_embedding_size_is_a_model(tmp_path):
    net = build_backbone("mini", embedding_size=96)
    weights = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 1, "state_dict_backbone": weights}, tmp_path / "checkpoint_gpu_0.pt")
    model = load_model(tmp_path / "checkpoint_gpu_0.pt", backbone="mini")
    assert model.info.embedding_size == 96
    assert model.module(torch.zeros(2, 3, 112, 112)).shape == (2, 96)


def test_a_model_in_three_lines(run):
    images = random_faces(3)
    model = rayface.load_model(run)
    embeddings = model.embed(images)
    assert embeddings.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(model.embed(images[:, :, ::-1]), embeddings, atol=1e-5)  # the mirror image is in it
    assert model.embed(images[:0]).shape == (0, 8)
    for wrong in (images[0], images.astype(np.float32), images[:, :8]):
        with pytest.raises(ValueError, match=r"must be uint8 RGB of shape \(N, 32, 32, 3\)"):
            model.embed(wrong)


def test_importing_rayface_imports_nothing_heavy():
    code = "import sys, rayface; print(*sorted({'torch', 'ray', 'numpy', 'cv2', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_onnx_gives_what_pytorch_gives_on_real_faces(faces, run, tmp_path):
    images = real_faces(faces, 24)
    export_onnx(load_model(run), tmp_path / "model.onnx")
    wanted, got = (load_model(path).embed(images) for path in (run, tmp_path / "model.onnx"))
    assert np.abs(got - wanted).max() < 1e-5
    assert np.abs(wanted[0] - wanted[1:]).max() > 1e-2  # other faces, other embeddings


def test_onnx_that_differs_is_not_written(run, tmp_path):
    model = load_model(run)
    with torch.no_grad():
        next(model.module.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx")) + list(tmp_path.glob(".*onnx*"))  # nor is its folder left


def test_onnx_needs_its_extra_and_its_suffix(run, tmp_path, monkeypatch):
    model = load_model(run)
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export_onnx(model, tmp_path / "model.bin")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'rayface\[onnx\]'"):
        export_onnx(model, tmp_path / "model.onnx")
