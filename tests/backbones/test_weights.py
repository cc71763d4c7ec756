"""load_backbone: files that fit, and what it says of those that do not."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rayface.backbones import build_backbone, load_backbone

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


def test_safetensors_are_read(net: nn.Module, tmp_path: Path) -> None:
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    assert same_embeddings(load_backbone("mini", tmp_path / "model.safetensors", **SMALL), net)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_published_state_dicts_are_read(net: nn.Module, tmp_path: Path, suffix: str) -> None:
    weights = {f"module.{k}": v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / f"backbone{suffix}")
    loaded = load_backbone("mini", tmp_path / f"backbone{suffix}", **SMALL)
    assert same_embeddings(loaded, net)
    assert not loaded.training


def test_a_checkpoint_around_the_state_dict_is_opened(net: nn.Module, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, tmp_path / "checkpoint.pt")
    assert same_embeddings(load_backbone("mini", tmp_path / "checkpoint.pt", **SMALL), net)


def test_what_does_not_fit_is_named_in_one_line(net: nn.Module, tmp_path: Path) -> None:
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


def test_long_lists_of_misfits_are_counted(net: nn.Module, tmp_path: Path) -> None:
    save_file(net.state_dict(), tmp_path / "mini.safetensors")
    with pytest.raises(ValueError, match=r"do not fit r34: missing .* and \d+ more"):
        load_backbone("r34", tmp_path / "mini.safetensors", **SMALL)


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code from a weights file ran",))


def test_files_that_would_run_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_bad_files_are_user_errors(tmp_path: Path, name: str, content: bytes | None, rule: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rule):
        load_backbone("mini", tmp_path / name, **SMALL)


def test_a_dict_of_other_things_is_not_a_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "log.pt")
    with pytest.raises(ValueError, match="must map names to tensors"):
        load_backbone("mini", tmp_path / "log.pt", **SMALL)
