"""ONNX files as models: batches, types, outputs."""

import sys

import numpy as np
import onnx
import pytest
import torch

from rayface.embedding.embedder import load_embedder
from rayface.models.model_files import load_model
from rayface.models.onnx_model import OnnxModule, describe
from tests.models.saved_models import SIZE, random_faces


def onnx_file(path, outputs, *, batch="N", feature_maps=False, kind=onnx.TensorProto.FLOAT, shape=(3, SIZE, SIZE)):
    """A model whose outputs are sums of its image's channels times 1, 2, ...: {name: D}."""
    helper = onnx.helper
    nodes, initializers = [], []
    nodes.append(helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0))
    initializers.append(onnx.numpy_helper.from_array(np.array([2, 3]), "axes"))
    for name, length in outputs.items():
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        initializers.append(
            onnx.numpy_helper.from_array(
                np.arange(shape[0] * length).reshape(shape[0], length).astype(dtype), f"w_{name}"
            )
        )
        nodes.append(helper.make_node("MatMul", ["mean", f"w_{name}"], [name]))
    infos = [helper.make_tensor_value_info(name, kind, [batch, length]) for name, length in outputs.items()]
    if feature_maps:
        infos.insert(0, helper.make_tensor_value_info("image_again", kind, [batch, 3, SIZE, SIZE]))
        nodes.append(helper.make_node("Identity", ["image"], ["image_again"]))
    image = helper.make_tensor_value_info("image", kind, [batch, *shape])
    graph = helper.make_graph(nodes, "net", [image], infos, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_onnx_with_a_fixed_batch_is_fed_in_pieces_of_it(tmp_path):
    fixed = load_model(onnx_file(tmp_path / "fixed.onnx", {"e": 6}, batch=4))
    free = load_model(onnx_file(tmp_path / "free.onnx", {"e": 6}))
    images = random_faces(10)
    for batch_size in (1, 3, 4, 10):
        np.testing.assert_allclose(fixed.embed(images, batch_size=batch_size), free.embed(images), atol=1e-6)


def test_onnx_with_other_weights_beside_it_has_another_digest(tmp_path):
    path = onnx_file(tmp_path / "a.onnx", {"e": 6})
    alone = load_model(path).info.sha256
    digests = []
    for weights in (b"one", b"one", b"two"):
        (tmp_path / "a.onnx.data").write_bytes(weights)
        digests.append(load_model(path).info.sha256)
    assert digests[0] == digests[1]
    assert len({alone, *digests}) == 3


def test_onnx_in_half_precision_gives_float32_embeddings(tmp_path):
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
    with pytest.raises(ValueError, match="'x' is not an output of shape"):
        load_model(f"{two}::x")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": (1, SIZE, SIZE)}, r"must take one batch of images \(N, 3, size, size\), it takes"),
        ({"shape": (3, "height", "width")}, r"must take one batch of images"),
        ({"outputs": {"quality": 1}}, r"must return embeddings of shape \(N, D\), its outputs are"),
    ],
)
def test_onnx_of_another_input_or_output_raises_one_line(tmp_path, options, words):
    path = onnx_file(tmp_path / "other.onnx", **{"outputs": {"e": 6}, **options})
    with pytest.raises(ValueError, match=words) as caught:
        OnnxModule(path)
    assert "\n" not in str(caught.value)


def test_onnx_without_onnxruntime_raises_one_line(tmp_path, monkeypatch):
    path = onnx_file(tmp_path / "model.onnx", {"e": 6})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"^models in ONNX need onnxruntime: pip install 'rayface\[onnx\]'$"):
        OnnxModule(path)


def test_onnx_forward_keeps_type_and_device_of_torch(tmp_path):
    module = OnnxModule(onnx_file(tmp_path / "model.onnx", {"e": 6}))
    images = torch.rand(3, 3, SIZE, SIZE)
    found = module(images)
    weights = torch.arange(18.0).view(3, 6)
    torch.testing.assert_close(found, images.mean((2, 3)) @ weights)
    assert list(module.parameters()) == []


def test_load_model_of_an_onnx_file_with_a_backbone_is_refused(tmp_path):
    path = onnx_file(tmp_path / "model.onnx", {"e": 6})
    with pytest.raises(
        ValueError, match=r"^backbone: r50: has no effect: .*model.onnx holds its network: leave it out"
    ):
        load_model(path, backbone="r50")


def test_load_embedder_of_an_onnx_file_in_bf16_is_refused(tmp_path):
    path = onnx_file(tmp_path / "model.onnx", {"e": 6})
    with pytest.raises(ValueError, match=r"^precision: bf16: has no effect: .*model.onnx computes in its own types"):
        load_embedder(path, precision="bf16")


def test_describe_of_a_file_of_others_assumes_the_usual_normalisation(tmp_path):
    info = describe(OnnxModule(onnx_file(tmp_path / "model.onnx", {"e": 6})), "abc")
    assert (info.backbone, info.embedding_size, info.image_size, info.sha256) == ("onnx", 6, SIZE, "abc")
    assert info.normalisation == "RGB, x / 127.5 - 1"
    assert info.licence == "unknown: ask the publisher"
    assert info.training_digest == ""


def test_describe_of_a_file_with_metadata_takes_what_it_says(tmp_path):
    path = onnx_file(tmp_path / "model.onnx", {"e": 6})
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"rayface.backbone": "mini", "rayface.licence": "mine", "other": "x"})
    onnx.save(model, path)
    module = OnnxModule(path)
    assert module.metadata == {"backbone": "mini", "licence": "mine"}
    assert (describe(module, "abc").backbone, describe(module, "abc").licence) == ("mini", "mine")
