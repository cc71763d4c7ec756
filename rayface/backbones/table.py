"""Table of the backbones: size, paper, and speed on this machine."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rayface.backbones.counting import count_macs, count_parameters
from rayface.backbones.registry import BACKBONES, build_backbone
from rayface.backbones.shapes import shapes_only

_MEASURED_SECONDS = 1.0  # minimum measuring time of a backbone, with at least two batches
# arXiv number by prefix of the name.
_PAPERS = {
    "mini": "IResNet 2004.04989",
    "r": "IResNet 2004.04989",
    "mbf": "MobileFaceNet 1804.07573",
    "mixfacenet": "MixFaceNet 2107.13046",
    "shufflemixfacenet": "MixFaceNet 2107.13046",
    "vargfacenet": "VarGFaceNet 1910.04985",
    "vit": "ViT 2203.15565",
}


def backbone_table(
    names: Sequence[str] = (),
    *,
    embedding_size: int = 512,
    image_size: int = 112,
    measure: bool = False,
    batch_size: int = 16,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """List backbones with their size and, with `measure`, the images/s that they embed on this machine.

    Args:
        names: names of backbones; none: all.
        embedding_size: dimension of an embedding.
        image_size: side of an image, pixels.
        measure: run each backbone in float32, evaluation mode and channels_last; median of the batches of one second.
        batch_size: images per measured batch.
        device: device to measure on.

    Returns:
        For each backbone name, parameters, macs (multiply-adds of one image), embedding_size, image_size, paper, and
        images_per_second if measured.

    Raises:
        ValueError: an unknown name, or an invalid size.
    """
    rows = []
    for name in names or BACKBONES:
        with shapes_only():
            net = build_backbone(name, embedding_size=embedding_size, image_size=image_size)
        row = {
            "name": name,
            "parameters": count_parameters(net),
            "macs": count_macs(net, image_size),
            "embedding_size": embedding_size,
            "image_size": image_size,
            "paper": _PAPERS.get(name.rstrip("0123456789").partition("_")[0], "timm"),
        }
        if measure:
            net = build_backbone(name, embedding_size=embedding_size, image_size=image_size)
            row["images_per_second"] = _images_per_second(net, image_size, batch_size, device)
        rows.append(row)
    return rows


def _images_per_second(net: nn.Module, image_size: int, batch_size: int, device: str) -> float:
    layout = torch.channels_last
    net = net.to(device).to(memory_format=layout).eval()  # type: ignore[call-overload]
    images = torch.randn(batch_size, 3, image_size, image_size, device=device).to(memory_format=layout)
    seconds: list[float] = []
    with torch.inference_mode():
        net(images)
        while len(seconds) < 2 or sum(seconds) < _MEASURED_SECONDS:
            start = time.perf_counter()
            net(images)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds)
