"""Checks of the arguments of heads."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, one line, unless a setting of the head is one of its choices."""
    if value not in choices:
        raise ValueError(f"head.{name} {value!r} must be one of {', '.join(choices)}")


def check_labels(labels: Any) -> None:
    """Raise ValueError unless the labels are a tensor of int64."""
    check_tensor("labels", labels)
    if labels.dtype != torch.int64:
        raise ValueError(f"labels of shape {tuple(labels.shape)}, {labels.dtype} must be int64, one per embedding")


def check_tensor(name: str, value: object) -> None:
    """Raise ValueError, one line, for anything but a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: {type(value).__name__}: must be a tensor, for example torch.as_tensor({name})")


def check_embeddings(embeddings: Any, embedding_size: int) -> None:
    """Raise ValueError, one line, unless the embeddings are (n, embedding_size)."""
    check_tensor("embeddings", embeddings)
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size:
        raise ValueError(f"embeddings of shape {tuple(embeddings.shape)} must be (batch, {embedding_size})")


def check_batch(embeddings: Any, labels: Any, embedding_size: int) -> None:
    """Raise ValueError, one line, unless the embeddings are (n, embedding_size), and the labels (n,) int64."""
    check_embeddings(embeddings, embedding_size)
    check_labels(labels)
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels of shape {tuple(labels.shape)} must be one per embedding")


def check_centers(centers: Any, num_classes: int, embedding_size: int) -> None:
    """Raise ValueError, one line, unless the centers are (num_classes, embedding_size)."""
    check_tensor("centers", centers)
    if centers.shape != (num_classes, embedding_size):
        wanted = (num_classes, embedding_size)
        raise ValueError(f"centers of shape {tuple(centers.shape)} must be {wanted}, all classes of all ranks")


def check_rates(**rates: float) -> None:
    """Raise ValueError, one line, for momentum or weight_decay out of its range."""
    for name, value in rates.items():
        _check_number(f"optim.{name}", value)
    if not 0 <= rates["momentum"] < 1:
        raise ValueError(f"optim.momentum {rates['momentum']} must be at least 0 and below 1, usually 0.9")
    if rates["weight_decay"] < 0:
        raise ValueError(f"optim.weight_decay {rates['weight_decay']} must be at least 0, usually 0.0005")


def check_numbers(sample_rate: float, num_classes: int, embedding_size: int, logit_memory: int) -> None:
    """Raise ValueError, one line, for a number out of its range."""
    for name, value in (
        ("head.sample_rate", sample_rate),
        ("num_classes", num_classes),
        ("embedding_size", embedding_size),
        ("head.logit_memory", logit_memory),
    ):
        _check_number(name, value)
    if not 0 < sample_rate <= 1:
        raise ValueError(f"head.sample_rate {sample_rate} must be in (0, 1]; 1 uses every class in every step")
    if num_classes < 1 or embedding_size < 1:
        raise ValueError(f"head of {num_classes} classes and {embedding_size} numbers: both must be at least 1")
    if logit_memory < 1:
        raise ValueError(f"head.logit_memory {logit_memory} must be a positive number of bytes")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name} {value!r} must be a number")
