"""VarGFaceNet: its forward pass written out, groups of channels."""

import pytest
import torch
from torch import nn

from rayface.backbones import build_backbone
from rayface.backbones.vargfacenet import GROUP_CHANNELS, SeparableConv, SqueezeExcite, VarGFaceNet
from tests.backbones.transcription import State, assert_equals_transcription, bn, conv, names_of, prelu


def vargfacenet(w: State, x: torch.Tensor) -> torch.Tensor:
    def norm(key: str, x: torch.Tensor, active: bool = True) -> torch.Tensor:
        x = bn(w, f"{key}.1", x, eps=2e-5)
        return prelu(w, f"{key}.2", x) if active else x

    def separable(key: str, x: torch.Tensor, stride: int = 1, active: bool = True) -> torch.Tensor:
        x = norm(f"{key}.0", conv(w, f"{key}.0.0", x, stride, 1))
        return norm(f"{key}.1", conv(w, f"{key}.1.0", x), active)

    def normal(key: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        y = separable(f"{key}.second", separable(f"{key}.first", x, stride), active=False)
        gate = prelu(w, f"{key}.se.gate.1", conv(w, f"{key}.se.gate.0", y.mean((2, 3), keepdim=True)))
        y = y * torch.sigmoid(conv(w, f"{key}.se.gate.2", gate))
        return prelu(w, f"{key}.prelu", y + (separable(f"{key}.shortcut", x, 2, False) if stride == 2 else x))

    def down(key: str, x: torch.Tensor) -> torch.Tensor:
        y = separable(f"{key}.left", x, 2, False) + separable(f"{key}.right", x, 2, False)
        y = separable(f"{key}.second", prelu(w, f"{key}.merge", y), active=False)
        return prelu(w, f"{key}.prelu", y + separable(f"{key}.shortcut", x, 2, False))

    x = x * 127.5 / 128  # (pixel - 127.5) / 128, as published
    x = normal("head.1", norm("head.0", conv(w, "head.0.0", x, padding=1)), 2)
    for stage, num_units in enumerate((3, 7, 4)):
        x = down(f"stages.{stage}.0", x)
        for i in range(1, num_units):
            x = normal(f"stages.{stage}.{i}", x)
    x = norm("expand", conv(w, "expand.0", x))
    x = norm("embed.1", conv(w, "embed.1.0", norm("embed.0", conv(w, "embed.0.0", x), False))).flatten(1)
    return bn(w, "embed.5", x @ w["embed.4.weight"].T + w["embed.4.bias"], eps=2e-5)


@pytest.mark.parametrize("name", names_of(VarGFaceNet))
def test_vargfacenet_forward_equals_its_transcription(name: str) -> None:
    assert_equals_transcription(name, 0.4, vargfacenet)


@pytest.mark.parametrize("width", [1.0, 0.6, 0.01])
def test_width_of_a_vargfacenet_rounds_to_whole_groups(width: float) -> None:
    with torch.device("meta"):
        net = build_backbone("vargfacenet", width=width)
    grouped = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert grouped
    assert {layer.in_channels // layer.groups for layer in grouped} == {GROUP_CHANNELS}
    assert net.head[0][0].out_channels == GROUP_CHANNELS * max(1, round(5 * width))


def test_separable_conv_with_a_factor_widens_between_its_convolutions() -> None:
    first, second = SeparableConv(16, 24, 2, stride=2, active=False)
    assert (first[0].out_channels, first[0].groups, first[0].stride) == (32, 2, (2, 2))
    assert (second[0].in_channels, second[0].out_channels) == (32, 24)
    assert len(second) == 2  # no activation


def test_squeeze_excite_of_a_constant_map_weighs_each_channel_by_a_gate() -> None:
    torch.manual_seed(0)
    layer, images = SqueezeExcite(8), torch.ones(2, 8, 3, 3)
    gates = layer(images)
    assert torch.equal(gates, gates[:, :, :1, :1].expand_as(gates))
    assert ((gates > 0) & (gates < 1)).all()
