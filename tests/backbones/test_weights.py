"""load_backbone: files that fit, and what it says of those that do not."""

import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rayface.backbones import build_backbone, load_backbone
from rayface.backbones.weights import embedding_size_of

SMALL = {"embedding_size": 8, "image_size": 32, "width": 0.25}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(1)
    net = build_backbone("mini", **SMALL)
    net(torch.randn(8, 3, 32, 32))  # running statistics that are not those of a new net
    return net.eval()


def same_embeddings(one: nn.Module, other: nn.Module) -> bool:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return torch.equal(one(images), other(images))


def test_read_weights_of_a_safetensors_file_returns_its_tensors(net: nn.Module, tmp_path: Path) -> None:
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    assert same_embeddings(load_backbone("mini", tmp_path / "model.safetensors", **SMALL), net)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_read_weights_of_published_state_dicts_loads_them(net: nn.Module, tmp_path: Path, suffix: str) -> None:
    weights = {f"module.{k}": v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / f"backbone{suffix}")
    loaded = load_backbone("mini", tmp_path / f"backbone{suffix}", **SMALL)
    assert same_embeddings(loaded, net)
    assert not loaded.training


@pytest.mark.parametrize(
    "around",
    [
        lambda weights: {"epoch": 3, "state_dict": weights},
        lambda weights: {"model": weights, "optimizer": {"lr": 0.1}},
        lambda weights: {
            "epoch": np.float64(3),
            "state_dict_backbone": {f"module._orig_mod.{key}": value for key, value in weights.items()},
            "state_dict_softmax_fc": {"weight": torch.zeros(4, 8)},
            "state_optimizer": {"state": {}, "param_groups": [{"lr": np.float32(0.1)}]},
        },
        lambda weights: {f"_orig_mod.module.{key}": value for key, value in weights.items()},
    ],
    ids=["state_dict", "model", "arcface_torch", "prefixes"],
)
def test_read_weights_of_a_training_checkpoint_finds_its_state_dict(
    net: nn.Module, tmp_path: Path, around: Any
) -> None:
    torch.save(around(net.state_dict()), tmp_path / "checkpoint.pt")
    assert same_embeddings(load_backbone("mini", tmp_path / "checkpoint.pt", **SMALL), net)


@pytest.mark.parametrize("name", ["mini", "mbf", "vit_t", "mixfacenet_xs", "vargfacenet"])
def test_embedding_size_of_weights_is_that_of_their_last_layer(name: str) -> None:
    with torch.device("meta"):
        weights = build_backbone(name, embedding_size=96).state_dict()
    assert embedding_size_of(name, weights) == 96


def test_load_backbone_with_another_embedding_size_takes_that_of_the_weights(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "backbone.pt")
    loaded = load_backbone("mini", tmp_path / "backbone.pt", image_size=32, width=0.25)
    assert same_embeddings(loaded, net)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_raise(net: nn.Module, tmp_path: Path, value: float) -> None:
    weights = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    weights["layer2.0.bn1.running_var"][3] = value
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layer2\.0\.bn1\.running_var holds NaN or infinity"):
        load_backbone("mini", tmp_path / "model.safetensors", **SMALL)


def whole_model(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def torch_script(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(path)


def cut_off(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize(
    ("write", "rule"),
    [
        (whole_model, "holds Python objects, such as a whole pickled model; save the model's state_dict"),
        (torch_script, "TorchScript archive"),
        (cut_off, "it is corrupt"),
        (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "is an HTML page"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "git-lfs pointer"),
        (lambda path: path.write_bytes(b""), "it is empty"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_read_weights_of_a_file_without_a_state_dict_raises_one_line(tmp_path: Path, write: Any, rule: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rule) as error:
        load_backbone("mini", tmp_path / "model.pt", **SMALL)
    message = str(error.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert "weights_only" not in message


def test_load_backbone_with_weights_that_do_not_fit_raises_one_line(net: nn.Module, tmp_path: Path) -> None:
    weights = dict(net.state_dict())
    del weights["bn1.weight"]
    weights["head.weight"] = torch.zeros(2)
    weights["fc.weight"] = torch.zeros(8, 7)
    path = tmp_path / "other.safetensors"
    save_file(weights, path)
    with pytest.raises(ValueError, match="do not fit mini") as error:
        load_backbone("mini", path, **SMALL)
    message = str(error.value)
    assert "missing bn1.weight; unexpected head.weight; shape fc.weight (8, 7) instead of (8, 128)" in message
    assert "\n" not in message


def test_load_backbone_with_many_misfits_counts_them(net: nn.Module, tmp_path: Path) -> None:
    save_file(net.state_dict(), tmp_path / "mini.safetensors")
    with pytest.raises(ValueError, match=r"do not fit r34: missing .* and \d+ more"):
        load_backbone("r34", tmp_path / "mini.safetensors", **SMALL)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code from a weights file ran",))


def test_read_weights_of_a_file_that_would_run_code_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("zip.pt", None), ("bare.pth", pickle.dumps({"fc.weight": Exploit()}, protocol=2))):
        path = tmp_path / name
        if content is None:
            torch.save({"fc.weight": Exploit()}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read as tensors") as error:
            load_backbone("mini", path, **SMALL)
        assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("none.pt", None, "is not a file"),
        ("model.onnx", b"", "must be .safetensors, .pt or .pth"),
        ("empty.pt", b"", "cannot be read as tensors"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot be read as tensors"),
    ],
)
def test_read_weights_of_a_bad_file_raises_one_line(
    tmp_path: Path, name: str, content: bytes | None, rule: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rule):
        load_backbone("mini", tmp_path / name, **SMALL)


def test_read_weights_of_a_dict_of_other_things_raises(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "log.pt")
    with pytest.raises(ValueError, match="must map names to tensors"):
        load_backbone("mini", tmp_path / "log.pt", **SMALL)


def test_read_weights_of_a_file_that_builds_numpy_objects_builds_none(tmp_path: Path) -> None:
    """NumPy would use the eight letters A as the address of an object, and the process would die."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    dtype, ndarray = b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"
    record = dtype + b"](" + text("a") + text("O") + b"\x86e\x85Rq\x02"
    array = b"cnumpy._core.multiarray\n_reconstruct\n" + ndarray + b"K\x00\x85" + text("b") + b"\x87Rq\x04"
    array += b"(K\x01)h\x02\x89](" + text("x") + b"\x85etb"
    freed = b"cnumpy._core.multiarray\nscalar\nh\x02h\x04\x86Rq\x05"
    integers = dtype + text("i8") + b"\x85Rq\x06"
    address = b"c_codecs\nencode\n" + text("A" * 8) + text("latin1") + b"\x86R"
    body = b"\x80\x02(" + record + array + freed + integers + b"h\x04(K\x01)h\x06\x89" + address + b"tb"
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body + ndarray + b"h\x05h\x06\x86Rt.")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    code = f"from rayface.backbones.weights import read_weights; read_weights({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ValueError: weights {path} is not a state dict")
