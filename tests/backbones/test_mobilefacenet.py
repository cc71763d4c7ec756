"""MobileFaceNet: its forward pass written out, the first stage."""

import pytest
import torch

from rayface.backbones import build_backbone
from rayface.backbones.mobilefacenet import Bottleneck, ConvNorm, MobileFaceNet
from tests.backbones.transcription import State, assert_equals_transcription, bn, conv, count, names_of, prelu


def mobilefacenet(w: State, x: torch.Tensor) -> torch.Tensor:
    def block(key: str, x: torch.Tensor, stride: int = 1, padding: int = 0, active: bool = True) -> torch.Tensor:
        x = bn(w, f"{key}.layers.1", conv(w, f"{key}.layers.0", x, stride, padding))
        return prelu(w, f"{key}.layers.2", x) if active else x

    def bottleneck(key: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        x = block(f"{key}.layers.1", block(f"{key}.layers.0", x), stride, 1)
        return block(f"{key}.layers.2", x, active=False)

    def bottlenecks(key: str, x: torch.Tensor) -> torch.Tensor:
        for i in count(w, f"{key}.layers"):
            x = x + bottleneck(f"{key}.layers.{i}", x, 1)
        return x

    x = block("layers.0", x, 2, 1)
    # a first stage of one block is one grouped convolution instead
    x = block("layers.1", x, 1, 1) if "layers.1.layers.0.weight" in w else bottlenecks("layers.1", x)
    for stage in (2, 4, 6):
        x = bottlenecks(f"layers.{stage + 1}", bottleneck(f"layers.{stage}", x, 2))
    x = block("features.layers.0", block("conv_sep", x), active=False).flatten(1)
    return bn(w, "features.layers.3", x @ w["features.layers.2.weight"].T)


@pytest.mark.parametrize("name", names_of(MobileFaceNet))
def test_mobilefacenet_forward_of_every_size_equals_its_transcription(name: str) -> None:
    assert_equals_transcription(name, 0.125 if name == "mbf" else 0.0625, mobilefacenet)


def test_first_stage_of_a_single_block_is_a_grouped_convolution() -> None:
    with torch.device("meta"):
        small, large = (build_backbone(name).layers[1] for name in ("mbf", "mbf_large"))
    assert isinstance(small, ConvNorm)
    assert small.layers[0].groups == 64
    assert len(large.layers) == 2


@pytest.mark.parametrize("width", [1.0, 0.5, 0.01])
def test_width_of_a_mobilefacenet_scales_all_channels_to_whole_units(width: float) -> None:
    unit = max(1, round(64 * width))
    with torch.device("meta"):
        net = build_backbone("mbf", width=width)
    assert net.layers[0].layers[0].out_channels == 2 * unit
    assert net.conv_sep.layers[0].out_channels == 8 * unit


def test_bottleneck_with_a_residual_adds_its_input() -> None:
    torch.manual_seed(0)
    block, images = Bottleneck(4, 4, 8, residual=True).eval(), torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(block(images), images + block.layers(images))
