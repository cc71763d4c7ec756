"""Improved residual networks (Duta et al., arXiv 2004.04989) in the variant of ArcFace.

A block is BN - conv3x3 - BN - PReLU - conv3x3(stride) - BN plus a shortcut, with no activation after the sum.
The stem keeps the resolution, each of the four stages halves it. Names and shapes of the state dict are
those of arcface_torch, so its published weights load.
"""

import torch
import torch.nn.functional as F
from torch import nn

from rayface.backbones.precision import full_precision
from rayface.backbones.recompute import recomputed


class ShortcutConv(nn.Conv2d):
    """1x1 convolution with a stride: (N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride)).

    oneDNN's gradient of its weights writes past a buffer where channels_last images have fewer channels than a block
    (16 with AVX-512): wrong gradients or a crash (https://github.com/uxlfoundation/oneDNN/issues/6035). With stride 1
    it is correct, so on CPUs the pixels of such images are selected first.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or self.in_channels >= 16:
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias)


class ResidualBlock(nn.Module):
    """One residual block: (N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, shortcut: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Sequential(ShortcutConv(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
            if shortcut
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + self.downsample(x)


class IResNet(nn.Module):
    """Face images (N, 3, S, S) in [-1, 1] -> raw embeddings (N, embedding_size), float32 under autocast too.

    `layers` is the number of blocks of each of the four stages, which have 1, 2, 4 and 8 times
    `stem_channels * width` channels. The last linear layer sees ceil(S / 16)^2 positions, so weights fit one image
    size only. `checkpointing` keeps only the blocks' inputs for the backward pass and recomputes the rest.
    """

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        *,
        embedding_size: int = 512,
        image_size: int = 112,
        width: float = 1.0,
        dropout: float = 0.0,
        stem_channels: int = 64,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        channels = [max(1, round(width * stem_channels * factor)) for factor in (1, 2, 4, 8)]
        self.checkpointing = checkpointing
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.prelu = nn.PReLU(channels[0])
        self.layer1 = _stage(channels[0], channels[0], layers[0])
        self.layer2 = _stage(channels[0], channels[1], layers[1])
        self.layer3 = _stage(channels[1], channels[2], layers[2])
        self.layer4 = _stage(channels[2], channels[3], layers[3])
        self.bn2 = nn.BatchNorm2d(channels[3])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels[3] * (-(-image_size // 16)) ** 2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad = False  # all dimensions of the embedding keep the same scale
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = self._run(stage, x)
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with full_precision(x):
            return self.features(self.fc(x.to(self.fc.weight.dtype)))

    def _run(self, stage: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for block in stage:
            x = recomputed(block, x) if self.checkpointing and self.training else block(x)
        return x


def _stage(in_channels: int, channels: int, num_blocks: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, channels, 2, shortcut=True)
    return nn.Sequential(first, *(ResidualBlock(channels, channels, 1, shortcut=False) for _ in range(1, num_blocks)))
