"""Narrow nets of every family, and nets without memory for their weights."""

import torch
from torch import nn

from rayface.backbones import build_backbone

NARROW = {
    "mini": 0.25,
    "mbf": 0.125,
    "vit_t": 0.0625,
    "vargfacenet": 0.2,
    "mixfacenet_m": 0.3,
    "shufflemixfacenet_s": 0.3,
}


def narrow(name: str, *, image_size: int = 32, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(name, width=NARROW[name], embedding_size=16, image_size=image_size, **options)


def on_meta(name: str) -> nn.Module:
    """Build the net without memory for its weights."""
    with torch.device("meta"):
        return build_backbone(name)
