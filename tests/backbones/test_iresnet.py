"""iresnet: its forward pass written out, sizes, widths, first weights."""

import pytest
import torch
from torch import nn

from rayface.backbones import build_backbone
from rayface.backbones.iresnet import IResNet, ShortcutConv
from tests.backbones.transcription import State, assert_equals_transcription, bn, conv, count, names_of, prelu


@pytest.mark.parametrize("image_size", [16, 48, 56, 112])
def test_iresnet_of_any_image_size_gives_an_embedding_an_image(image_size: int) -> None:
    net = build_backbone("mini", image_size=image_size, embedding_size=32).eval()
    assert net(torch.zeros(2, 3, image_size, image_size)).shape == (2, 32)


def test_mini_of_the_registry_is_r18_at_a_quarter_of_its_width() -> None:
    mini = build_backbone("mini", image_size=56, embedding_size=256)
    narrow = build_backbone("r18", image_size=56, embedding_size=256, width=0.25)
    assert {k: v.shape for k, v in mini.state_dict().items()} == {k: v.shape for k, v in narrow.state_dict().items()}
    assert mini.conv1.out_channels == 16


def test_iresnet_when_built_has_small_convolutions_and_a_frozen_last_scale() -> None:
    net = build_backbone("r18", width=0.5, image_size=32)
    assert net.layer4[1].conv1.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert net.features.weight.requires_grad is False
    assert torch.equal(net.features.weight, torch.ones(512))


def iresnet(w: State, x: torch.Tensor) -> torch.Tensor:
    x = prelu(w, "prelu", bn(w, "bn1", conv(w, "conv1", x, padding=1)))
    for stage in range(1, 5):
        for block in count(w, f"layer{stage}"):
            k, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
            y = prelu(w, f"{k}.prelu", bn(w, f"{k}.bn2", conv(w, f"{k}.conv1", bn(w, f"{k}.bn1", x), padding=1)))
            y = bn(w, f"{k}.bn3", conv(w, f"{k}.conv2", y, stride, 1))
            if block == 0:
                x = bn(w, f"{k}.downsample.1", conv(w, f"{k}.downsample.0", x, stride))
            x = x + y
    x = bn(w, "bn2", x).flatten(1)
    return bn(w, "features", x @ w["fc.weight"].T + w["fc.bias"])


@pytest.mark.parametrize("name", names_of(IResNet))
def test_iresnet_forward_of_every_size_equals_its_transcription(name: str) -> None:
    assert_equals_transcription(name, 1.0 if name == "mini" else 0.0625, iresnet)


@pytest.mark.parametrize(("channels", "size"), [(8, 56), (4, 15), (16, 14)])
def test_gradients_of_a_shortcut_of_few_channels_equal_those_in_float64(channels: int, size: int) -> None:
    torch.manual_seed(0)
    conv = ShortcutConv(channels, 8, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
    images = torch.randn(32, channels, size, size).to(memory_format=torch.channels_last).requires_grad_()
    exact, weight = images.detach().double().requires_grad_(), conv.weight.detach().double().requires_grad_()
    expected = torch.nn.functional.conv2d(exact, weight, stride=2)
    out = conv(images)
    factors = torch.randn(out.shape)
    found = torch.autograd.grad((out * factors).sum(), [images, conv.weight])
    wanted = torch.autograd.grad((expected * factors.double()).sum(), [exact, weight])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("width", [0.25, 0.5])
def test_narrow_nets_have_no_plain_convolution_of_a_stride_that_onednn_computes_wrongly(width: float) -> None:
    for module in build_backbone("mini", width=width, image_size=32).modules():
        strided = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        assert not strided or isinstance(module, ShortcutConv)
