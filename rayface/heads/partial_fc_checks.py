"""Checks of PartialFC's arguments."""

import torch
from torch import Tensor


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, one line, unless a setting of the head is one of its choices."""
    if value not in choices:
        raise ValueError(f"head.{name} {value!r} must be one of {', '.join(choices)}")


def check_labels(labels: Tensor) -> None:
    """Raise ValueError unless the labels are int64."""
    if labels.dtype != torch.int64:
        raise ValueError(f"labels of shape {tuple(labels.shape)}, {labels.dtype} must be int64, one per embedding")


def check_numbers(sample_rate: float, num_classes: int, embedding_size: int, logit_memory: int) -> None:
    """Raise ValueError, one line, for a number out of its range."""
    if not 0 < sample_rate <= 1:
        raise ValueError(f"head.sample_rate {sample_rate} must be in (0, 1]; 1 uses every class in every step")
    if num_classes < 1 or embedding_size < 1:
        raise ValueError(f"head of {num_classes} classes and {embedding_size} numbers: both must be at least 1")
    if logit_memory < 1:
        raise ValueError(f"head.logit_memory {logit_memory} must be a positive number of bytes")
