"""Measures of a training step that a diagnosis of the run needs; computed only at steps that are logged."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rayface.heads import Head

NAMES = ("embedding_norm", "embedding_alignment", "pixel_mean", "pixel_std")


@torch.no_grad()
def measure(embeddings: Tensor, images: Tensor) -> Tensor:
    """Return the values of NAMES for one rank's images of a step, (4,), on their device.

    They are the mean norm of the embeddings (n, D), the length of the mean of the unit embeddings (1: all point in one
    direction), and mean and standard deviation of the pixels (n, 3, S, S) as the backbone sees them.
    """
    raw = embeddings.detach().float()
    norms = torch.linalg.vector_norm(raw, dim=1)
    direction = (raw / norms.clamp_min(1e-12)[:, None]).mean(0)
    pixels = images.float()
    return torch.stack([norms.mean(), torch.linalg.vector_norm(direction), pixels.mean(), pixels.std()])


def classes_used(head: Head) -> int:
    """Return the number of classes that this rank used; call it after the backward pass of a loss, before its step."""
    rows = head.last_rows()
    first, last, _ = head.row_range
    return last - first if rows is None else rows.numel()


def by_name(values: Sequence[float], num_classes: int, labels: Tensor) -> dict[str, float]:
    """Return the measures of a step by name, with the labels of this rank's images and the classes that it used.

    Args:
        values: result of `measure`, on the host.
        num_classes: result of `classes_used`.
        labels: (n,), on the host.
    """
    measures = dict(zip(NAMES, values, strict=True))
    measures["labels_in_batch"] = float(torch.unique(labels).numel())
    measures["classes_used"] = float(num_classes)
    return measures
