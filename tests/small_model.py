"""A small model with random weights on the disk."""

from pathlib import Path

import torch
from torch import nn

from rayface.backbones import build_backbone
from rayface.models.model_files import save_model


def save_small_model(
    folder: Path, *, embedding_size: int = 8, image_size: int = 32, fill: float | None = None
) -> nn.Module:
    """Save a net, which is the same each time, as a finished run does; return it in evaluation mode.

    Args:
        fill: number to put in the place of the first weights.
    """
    torch.manual_seed(0)
    sizes = {"embedding_size": embedding_size, "image_size": image_size}
    net = build_backbone("mini", **sizes, width=0.25)
    if fill is not None:
        nn.init.constant_(next(net.parameters()), fill)
    facts = {"licence": "", "training_digest": "", "metrics": {}, "backbone_args": {"width": 0.25}}
    save_model(folder, net, name="mini", **sizes, **facts)
    return net.eval()
