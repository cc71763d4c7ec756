"""VarGFaceNet (Yan et al., arXiv 1910.04985): convolutions with 8 channels per group and a variable number of groups.

The published weights are for MXNet; the names of this state dict are our own.
"""

import torch
from torch import nn

from rayface.backbones.precision import full_precision
from rayface.backbones.recompute import recomputed

GROUP_CHANNELS = 8
NUM_UNITS = (3, 7, 4)
SQUEEZE = 4
NORM_EPS = 2e-5
INPUT_SCALE = 127.5 / 128  # the paper scales inputs as (pixel - 127.5) / 128, we as (pixel - 127.5) / 127.5


class ConvNorm(nn.Sequential):
    """Convolution and batch norm, with a PReLU if `active`."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(channels, eps=NORM_EPS),
        )
        if active:
            self.append(nn.PReLU(channels))


class SeparableConv(nn.Sequential):
    """3x3 convolution in groups of 8 channels, `factor` times as wide as its input, and a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, factor: int, *, stride: int = 1, active: bool = True) -> None:
        inner = factor * in_channels
        super().__init__(
            ConvNorm(in_channels, inner, 3, stride=stride, padding=1, groups=in_channels // GROUP_CHANNELS),
            ConvNorm(inner, channels, 1, active=active),
        )


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate in (0, 1) computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // SQUEEZE
        self.gate = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.PReLU(inner), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x.mean(dim=(2, 3), keepdim=True))


class NormalBlock(nn.Module):
    """Two separable convolutions with squeeze-and-excitation; the shortcut is a convolution if the map is halved."""

    def __init__(self, channels: int, factor: int, stride: int = 1) -> None:
        super().__init__()
        self.first = SeparableConv(channels, channels, factor, stride=stride)
        self.second = SeparableConv(channels, channels, factor, active=False)
        self.se = SqueezeExcite(channels)
        self.shortcut = (
            nn.Identity() if stride == 1 else SeparableConv(channels, channels, factor, stride=stride, active=False)
        )
        self.prelu = nn.PReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prelu(self.se(self.second(self.first(x))) + self.shortcut(x))


class DownBlock(nn.Module):
    """First block of a stage: halves the map by the sum of two parallel separable convolutions."""

    def __init__(self, in_channels: int, channels: int, factor: int) -> None:
        super().__init__()
        self.left = SeparableConv(in_channels, channels, factor, stride=2, active=False)
        self.right = SeparableConv(in_channels, channels, factor, stride=2, active=False)
        self.merge = nn.PReLU(channels)
        self.second = SeparableConv(channels, channels, factor, active=False)
        self.shortcut = SeparableConv(in_channels, channels, factor, stride=2, active=False)
        self.prelu = nn.PReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.merge(self.left(x) + self.right(x)))
        return self.prelu(y + self.shortcut(x))


class VarGFaceNet(nn.Module):
    """Face images (N, 3, S, S) in [-1, 1] -> raw embeddings (N, embedding_size), float32 under autocast too.

    `width` 1 is the published network (40, 80, 160 and 320 channels, the paper's multiplier 1.25); other widths are
    rounded to whole groups of 8 channels. The map before the embedding has ceil(S / 16)^2 positions.
    """

    def __init__(
        self,
        *,
        embedding_size: int = 512,
        image_size: int = 112,
        width: float = 1.0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        stem = GROUP_CHANNELS * max(1, round(5 * width))
        last = 2 * GROUP_CHANNELS * max(1, round(64 * width))
        self.head = nn.Sequential(ConvNorm(3, stem, 3, padding=1), NormalBlock(stem, 1, stride=2))
        self.stages = nn.ModuleList(
            nn.Sequential(
                DownBlock(stem * 2**i, stem * 2 ** (i + 1), 2),
                *(NormalBlock(stem * 2 ** (i + 1), 2) for _ in range(num_units - 1)),
            )
            for i, num_units in enumerate(NUM_UNITS)
        )
        self.expand = ConvNorm(8 * stem, last, 1)
        size = -(-image_size // 16)
        self.embed = nn.Sequential(
            ConvNorm(last, last, size, groups=last // GROUP_CHANNELS, active=False),
            ConvNorm(last, last // 2, 1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(last // 2, embedding_size),
            nn.BatchNorm1d(embedding_size, eps=NORM_EPS),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.head(images * INPUT_SCALE)
        for stage in self.stages:
            x = recomputed(stage, x) if self.checkpointing and self.training else stage(x)
        x = self.expand(x)
        with full_precision(x):
            return self.embed(x.to(self.embed[4].weight.dtype))
