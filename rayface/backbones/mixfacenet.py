"""MixFaceNets (Boutros et al., arXiv 2107.13046): MixNets (arXiv 1907.09595) with an embedding layer.

A unit splits its channels into groups and applies a depthwise kernel of another size, 3, 5, 7, ..., to each; its 1x1
convolutions may be grouped too. The stem's unit shuffles its output channels to mix the groups; in the shuffle
variants every unit does.
Names and shapes of the state dict are those of the published weights, including a misspelling.
"""

from typing import NamedTuple

import torch
from torch import nn

from rayface.backbones.precision import full_precision
from rayface.backbones.recompute import recomputed


class UnitShape(NamedTuple):
    """Hyperparameters of one unit: its channels, and the number of groups of each of its convolutions."""

    channels: int
    expand_parts: int
    kernels: int  # number of depthwise kernel sizes, from 3, 5, 7, ...
    project_parts: int
    expansion: int
    squeeze: int  # squeeze-and-excitation has (input channels / squeeze) channels; 0: none


_S_REPEATED = UnitShape(40, 2, 2, 2, 6, 2)
_M_MIDDLE = UnitShape(80, 2, 4, 2, 6, 4)
_NARROW = UnitShape(120, 2, 4, 2, 3, 2)
_LAST = UnitShape(200, 1, 4, 2, 6, 2)

MIXNET_S = (
    (UnitShape(24, 2, 1, 2, 6, 0), UnitShape(24, 2, 1, 2, 3, 0)),
    (UnitShape(40, 1, 3, 1, 6, 2), _S_REPEATED, _S_REPEATED, _S_REPEATED),
    (UnitShape(80, 1, 3, 2, 6, 4), UnitShape(80, 1, 2, 2, 6, 4), UnitShape(80, 1, 2, 2, 6, 4)),
    (UnitShape(120, 2, 3, 2, 6, 2), _NARROW, _NARROW, UnitShape(200, 1, 5, 1, 6, 2), _LAST, _LAST),
)
MIXNET_M = (
    (UnitShape(32, 2, 3, 2, 6, 0), UnitShape(32, 2, 1, 2, 3, 0)),
    (UnitShape(40, 1, 4, 1, 6, 2), _S_REPEATED, _S_REPEATED, _S_REPEATED),
    (UnitShape(80, 1, 3, 1, 6, 4), _M_MIDDLE, _M_MIDDLE, _M_MIDDLE),
    (UnitShape(120, 1, 1, 1, 6, 2), _NARROW, _NARROW, _NARROW, UnitShape(200, 1, 4, 1, 6, 2), _LAST, _LAST, _LAST),
)


class SplitConv(nn.ModuleList):
    """Parallel convolutions, each on its share of the channels; the first one takes the remainder."""

    def __init__(self, in_channels: int, channels: int, kernels: list[int], stride: int, *, depthwise: bool) -> None:
        shares = _shares(in_channels, len(kernels))
        outputs = _shares(channels, len(kernels))
        super().__init__(
            nn.Conv2d(a, b, k, stride, k // 2, groups=a if depthwise else 1, bias=False)
            for a, b, k in zip(shares, outputs, kernels, strict=True)
        )
        self.shares = shares

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.split(self.shares, dim=1)
        return torch.cat([conv(part) for conv, part in zip(self, parts, strict=True)], dim=1)


class ConvNorm(nn.Module):
    """Convolution (a `SplitConv` if there are several `kernels`), batch norm, and an optional activation."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernels: list[int],
        activation: nn.Module | None,
        *,
        stride: int = 1,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        split = SplitConv(in_channels, channels, kernels, stride, depthwise=depthwise)
        self.conv = split if len(kernels) > 1 else split[0]
        self.bn = nn.BatchNorm2d(channels)
        self.activ = activation if activation is not None else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activ(self.bn(self.conv(x)))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in (0, 1) computed from the means of all channels."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.activ = nn.SiLU()
        self.conv2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * self.conv2(self.activ(self.conv1(means))).sigmoid()


class MixUnit(nn.Module):
    """Expand, filter at several scales, squeeze and excite, project; residual if input and output shapes are equal."""

    def __init__(self, in_channels: int, shape: UnitShape, stride: int, *, prelu: bool, shuffle: bool) -> None:
        super().__init__()
        inner = shape.expansion * in_channels
        self.residual = stride == 1 and in_channels == shape.channels
        self.shuffle = shuffle
        if shape.expansion > 1:
            self.exp_conv = ConvNorm(in_channels, inner, [1] * shape.expand_parts, _activation(inner, prelu))
        sizes = [3 + 2 * i for i in range(shape.kernels)]
        self.conv1 = ConvNorm(inner, inner, sizes, _activation(inner, prelu), stride=stride, depthwise=True)
        if shape.squeeze:
            self.se = SqueezeExcite(inner, inner // (shape.expansion * shape.squeeze))
        self.conv2 = ConvNorm(inner, shape.channels, [1] * shape.project_parts, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for module in self.children():
            y = module(y)
        if self.residual:
            y = x + y
        return _even_channels_first(y) if self.shuffle else y


class InitBlock(nn.Module):
    """Stem, (N, 3, S, S) -> (N, C, S / 2, S / 2): a convolution and one unit without expansion."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, channels, [3], nn.PReLU(channels), stride=2)
        # The published weights of every variant were trained with a channel shuffle here.
        self.conv2 = MixUnit(channels, UnitShape(channels, 1, 1, 1, 1, 0), 1, prelu=True, shuffle=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x))


class FeatureLayer(nn.Module):
    """Depthwise S x S convolution of the map (N, C, S, S), then a linear map to (N, embedding_size, 1, 1)."""

    def __init__(self, channels: int, size: int, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.dw_conv = nn.Sequential()
        self.dw_conv.add_module("conv", nn.Conv2d(channels, channels, size, groups=channels, bias=False))
        self.dw_conv.add_module("bn", nn.BatchNorm2d(channels))
        self.dropout = nn.Dropout(dropout)
        self.pw_conv = nn.Sequential()
        self.pw_conv.add_module("conv", nn.Conv2d(channels, embedding_size, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pw_conv(self.dropout(self.dw_conv(x)))


class MixFaceNet(nn.Module):
    """Face images (N, 3, S, S) in [-1, 1] -> raw embeddings (N, embedding_size), float32 under autocast too.

    `stages` lists the units of the four stages after a stem of `stem_channels`; `scale * width` multiplies all
    channels, rounded to multiples of 8. `last_channels` is the width of the map before the embedding, which has
    ceil(S / 16)^2 positions.
    """

    def __init__(
        self,
        stages: tuple[tuple[UnitShape, ...], ...],
        stem_channels: int,
        *,
        last_channels: int = 1024,
        scale: float = 1.0,
        shuffle: bool = False,
        embedding_size: int = 512,
        image_size: int = 112,
        width: float = 1.0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        channels = _rounded(stem_channels, scale * width)
        self.features = nn.Sequential()
        self.features.add_module("init_block", InitBlock(channels))
        for i, shapes in enumerate(stages):
            stage = nn.Sequential()
            for j, named in enumerate(shapes):
                shape = named._replace(channels=_rounded(named.channels, scale * width))
                stride = 2 if _halves(i, j, len(shapes)) else 1
                unit = MixUnit(channels, shape, stride, prelu=i == 0, shuffle=shuffle)
                stage.add_module(f"unit{j + 1}", unit)
                channels = shape.channels
            self.features.add_module(f"stage{i + 1}", stage)
        last = _rounded(last_channels, width)
        self.tail = ConvNorm(channels, last, [1], nn.PReLU(last))
        self.feautre_layer = FeatureLayer(last, -(-image_size // 16), embedding_size, dropout)
        self.features_norm = nn.BatchNorm1d(embedding_size)
        self.features_norm.weight.requires_grad = False  # as in iresnet: one scale for all dimensions
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        for stage in self.features:
            x = recomputed(stage, x) if self.checkpointing and self.training else stage(x)
        x = self.tail(x)
        with full_precision(x):
            x = self.feautre_layer(x.to(self.features_norm.weight.dtype))
            return self.features_norm(x.flatten(1))


def _halves(stage: int, unit: int, num_units: int) -> bool:
    """Return whether a unit halves the map: the first unit of the middle stages, the middle unit of the last."""
    return unit == num_units // 2 if stage == 3 else stage > 0 and unit == 0


def _activation(channels: int, prelu: bool) -> nn.Module:
    return nn.PReLU(channels) if prelu else nn.SiLU()


def _shares(channels: int, parts: int) -> list[int]:
    share = channels // parts
    return [channels - share * (parts - 1)] + [share] * (parts - 1)


def _rounded(channels: int, factor: float) -> int:
    """Round to a multiple of 8; round up if rounding down loses more than 10 % (as in MobileNet)."""
    if factor == 1:
        return channels
    wanted = channels * factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def _even_channels_first(x: torch.Tensor) -> torch.Tensor:
    """Reorder the channels 0 1 2 3 ... to 0 2 4 ... 1 3 5 ..."""
    return x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
