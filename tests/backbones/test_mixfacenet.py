"""MixFaceNet: its forward pass written out, shares of channels, rounded widths."""

from functools import partial

import pytest
import torch

from rayface.backbones import build_backbone
from rayface.backbones.mixfacenet import MixFaceNet, MixUnit, SplitConv, UnitShape
from tests.backbones.transcription import State, assert_equals_transcription, bn, conv, names_of, prelu


def mixfacenet(w: State, x: torch.Tensor, *, shuffle: bool) -> torch.Tensor:
    def block(key: str, x: torch.Tensor, activation: str, stride: int = 1, depthwise: bool = False) -> torch.Tensor:
        names = [k.removesuffix(".weight") for k in w if k.startswith(f"{key}.conv.") and k.endswith("weight")]
        out, start = [], 0
        for name in names:  # in the order of the kernels
            size, share = w[f"{name}.weight"].shape[-1], w[f"{name}.weight"].shape[0 if depthwise else 1]
            out.append(conv(w, name, x[:, start : start + share], stride, size // 2))
            start += share
        assert start == x.shape[1]
        x = bn(w, f"{key}.bn", torch.cat(out, 1))
        if activation == "prelu":
            return prelu(w, f"{key}.activ", x)
        return x * torch.sigmoid(x) if activation == "swish" else x

    def unit(key: str, x: torch.Tensor, activation: str, stride: int, shuffle: bool = shuffle) -> torch.Tensor:
        y = block(f"{key}.exp_conv", x, activation) if f"{key}.exp_conv.bn.weight" in w else x
        y = block(f"{key}.conv1", y, activation, stride, depthwise=True)
        if f"{key}.se.conv1.weight" in w:
            gate = conv(w, f"{key}.se.conv1", y.mean((2, 3), keepdim=True))
            y = y * torch.sigmoid(conv(w, f"{key}.se.conv2", gate * torch.sigmoid(gate)))
        y = block(f"{key}.conv2", y, "none")
        y = x + y if stride == 1 and x.shape == y.shape else y
        return torch.cat([y[:, 0::2], y[:, 1::2]], 1) if shuffle else y

    x = block("features.init_block.conv1", x, "prelu", 2)
    x = unit("features.init_block.conv2", x, "prelu", 1, shuffle=True)  # in every variant
    units = {stage: len({key.split(".")[2] for key in w if f"stage{stage}." in key}) for stage in range(1, 5)}
    for stage, halving in ((1, None), (2, 1), (3, 1), (4, 1 + units[4] // 2)):
        for i in range(1, units[stage] + 1):
            activation = "prelu" if stage == 1 else "swish"
            x = unit(f"features.stage{stage}.unit{i}", x, activation, 2 if i == halving else 1)
    x = block("tail", x, "prelu")
    x = bn(w, "feautre_layer.dw_conv.bn", conv(w, "feautre_layer.dw_conv.conv", x))
    return bn(w, "features_norm", conv(w, "feautre_layer.pw_conv.conv", x).flatten(1))


@pytest.mark.parametrize("name", names_of(MixFaceNet))
def test_mixfacenet_forward_of_every_size_equals_its_transcription(name: str) -> None:
    width = 1.0 if name.endswith("_xs") else 0.5
    assert_equals_transcription(name, width, partial(mixfacenet, shuffle=name.startswith("shuffle")))


def test_split_conv_of_channels_that_do_not_divide_gives_the_rest_to_the_first() -> None:
    conv = SplitConv(11, 11, [3, 5, 7], 1, depthwise=True)
    assert conv.shares == [5, 3, 3]
    assert [part.kernel_size for part in conv] == [(3, 3), (5, 5), (7, 7)]
    assert [part.groups for part in conv] == [5, 3, 3]
    assert conv(torch.zeros(1, 11, 9, 9)).shape == (1, 11, 9, 9)


def test_mix_unit_adds_its_input_only_where_shapes_allow() -> None:
    shape = UnitShape(16, 1, 1, 1, 1, 0)
    assert MixUnit(16, shape, 1, prelu=True, shuffle=False).residual
    assert not MixUnit(16, shape, 2, prelu=True, shuffle=False).residual
    assert not MixUnit(8, shape, 1, prelu=True, shuffle=False).residual


def test_shuffled_mix_unit_puts_even_channels_first() -> None:
    torch.manual_seed(0)
    shape, images = UnitShape(8, 1, 1, 1, 1, 0), torch.randn(1, 8, 5, 5)
    plain, shuffled = (MixUnit(8, shape, 1, prelu=True, shuffle=shuffle).eval() for shuffle in (False, True))
    shuffled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(shuffled(images), plain(images)[:, [0, 2, 4, 6, 1, 3, 5, 7]])


@pytest.mark.parametrize(("width", "stem", "last"), [(1.0, 16, 1024), (0.5, 8, 512), (0.1, 8, 104), (1.7, 32, 1744)])
def test_width_of_a_mixfacenet_rounds_channels_to_multiples_of_8(width: float, stem: int, last: int) -> None:
    """Upwards where down would lose more than a tenth."""
    with torch.device("meta"):
        net = build_backbone("mixfacenet_s", width=width)
    assert net.features.init_block.conv1.conv.out_channels == stem
    assert net.tail.conv.out_channels == last
