"""MobileFaceNet (Chen et al., arXiv 1804.07573) in the wider variants of arcface_torch.

A bottleneck expands by a 1x1 convolution, filters depthwise and projects back linearly; a global depthwise convolution
replaces average pooling. Names and shapes of the state dict are those of arcface_torch.
"""

import torch
from torch import nn

from rayface.backbones.precision import full_precision
from rayface.backbones.recompute import recomputed


class ConvNorm(nn.Module):
    """Convolution and batch norm, with a PReLU if `active`."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, active: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 if active else 0  # layers without activation are 1x1 or cover the whole map
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
        )
        if active:
            self.layers.append(nn.PReLU(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Bottleneck(nn.Module):
    """Expand to `inner` channels, filter 3x3 depthwise with `stride`, project; add the input if `residual`."""

    def __init__(self, in_channels: int, channels: int, inner: int, stride: int = 1, *, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            ConvNorm(in_channels, inner),
            ConvNorm(inner, inner, 3, stride, groups=inner),
            ConvNorm(inner, channels, active=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Bottlenecks(nn.Module):
    """Sequence of `num_blocks` residual bottlenecks of the same shape."""

    def __init__(self, channels: int, inner: int, num_blocks: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Bottleneck(channels, channels, inner, residual=True) for _ in range(num_blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class GlobalEmbedding(nn.Module):
    """Depthwise S x S convolution of the map (N, C, S, S), then a linear map to the embedding."""

    def __init__(self, channels: int, size: int, embedding_size: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNorm(channels, channels, size, groups=channels, active=False),
            nn.Sequential(nn.Flatten(), nn.Dropout(dropout)),
            nn.Linear(channels, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class MobileFaceNet(nn.Module):
    """Face images (N, 3, S, S) in [-1, 1] -> raw embeddings (N, embedding_size), float32 under autocast too.

    `blocks` is the number of residual bottlenecks of each of the four stages, `scale` multiplies the channels between
    them (mbf: 2, mbf_large: 4), `width` all channels. The map before the embedding has ceil(S / 16)^2 positions.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        scale: int,
        embedding_size: int = 512,
        image_size: int = 112,
        width: float = 1.0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        unit = max(1, round(64 * width))
        narrow, wide = unit * scale, 2 * unit * scale
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(
            [
                ConvNorm(3, narrow, 3, 2),
                # A single block is a plain grouped convolution, as in the second row of the paper's table.
                ConvNorm(narrow, narrow, 3, groups=unit)
                if blocks[0] == 1
                else Bottlenecks(narrow, 2 * unit, blocks[0]),
                Bottleneck(narrow, narrow, 2 * unit, 2),
                Bottlenecks(narrow, 2 * unit, blocks[1]),
                Bottleneck(narrow, wide, 4 * unit, 2),
                Bottlenecks(wide, 4 * unit, blocks[2]),
                Bottleneck(wide, wide, 8 * unit, 2),
                Bottlenecks(wide, 4 * unit, blocks[3]),
            ]
        )
        self.conv_sep = ConvNorm(wide, 8 * unit)
        self.features = GlobalEmbedding(8 * unit, -(-image_size // 16), embedding_size, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        for stage in self.layers:
            x = recomputed(stage, x) if self.checkpointing and self.training else stage(x)
        x = self.conv_sep(x)
        with full_precision(x):
            return self.features(x.to(self.features.layers[2].weight.dtype))
