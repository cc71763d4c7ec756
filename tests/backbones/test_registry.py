"""build_backbone: what every family promises, names and values that it refuses."""

import sys

import pytest
import torch

from rayface.backbones import BACKBONES, build_backbone
from rayface.backbones.iresnet import IResNet
from rayface.backbones.mixfacenet import MixFaceNet
from rayface.backbones.mobilefacenet import MobileFaceNet
from rayface.backbones.vargfacenet import VarGFaceNet
from rayface.backbones.vit import VisionTransformer
from tests.backbones.narrow_nets import narrow
from tests.backbones.transcription import names_of


def test_build_backbone_of_an_unknown_name_raises_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"backbone\.name 'r19' is not a known backbone; did you mean 'r18'"):
        build_backbone("r19")
    with pytest.raises(ValueError, match="known are mbf, mbf_large, mini"):
        build_backbone("????")


def test_build_backbone_with_an_unknown_option_raises_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"backbone\.chekpointing .* did you mean 'checkpointing'"):
        build_backbone("r18", chekpointing=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("embedding_size", 0), ("image_size", 8), ("width", 0.0), ("width", -1.0), ("dropout", 1.0)],
)
def test_build_backbone_with_a_value_out_of_range_raises(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"backbone\.{field} {value}"):
        build_backbone("mini", **{field: value})


def test_backbones_of_the_registry_have_the_names_of_the_field() -> None:
    assert {"mini", "r18", "r34", "r50", "r100", "r200"} <= set(BACKBONES)


def test_build_backbone_of_timm_without_timm_raises_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"^backbone\.name: timm/resnet18: needs timm: pip install 'rayface\[timm\]'$"):
        build_backbone("timm/resnet18")


@pytest.mark.parametrize("image_size", [30, 48, 112])
def test_net_of_any_image_size_gives_an_embedding_an_image(name: str, image_size: int) -> None:
    net = narrow(name, image_size=image_size).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, image_size, image_size)).shape == (2, 16)


def test_net_in_channels_last_gives_the_same_embeddings(name: str) -> None:
    net = narrow(name).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        wanted = net(images)
        net = net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(net(images.to(memory_format=torch.channels_last)), wanted, rtol=1e-9, atol=1e-9)


def test_backward_of_a_net_gives_every_trainable_parameter_a_gradient(name: str) -> None:
    net = narrow(name).train()  # else data-parallel training would have to search for unused ones
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_dropout_of_a_net_acts_in_training_only(name: str) -> None:
    net = narrow(name, dropout=0.9)
    plain = narrow(name)
    assert net.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), plain.eval()(images))
        torch.manual_seed(1)
        dropped = net.train()(images)
        torch.manual_seed(1)
        assert not torch.allclose(dropped, plain.train()(images))


def test_backbones_of_the_registry_are_of_the_families_that_have_a_transcription() -> None:
    families = (IResNet, MixFaceNet, MobileFaceNet, VarGFaceNet, VisionTransformer)
    assert sorted(name for family in families for name in names_of(family)) == sorted(BACKBONES)
