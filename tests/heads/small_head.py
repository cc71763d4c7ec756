"""A small PartialFC of one process, and the batches that it is trained on."""

import torch
from torch import Tensor

from rayface.heads import CosFace, PartialFC

C, D, B = 300, 16, 24


def small_head(**changes) -> PartialFC:
    """Return a small head."""
    settings = {"embedding_size": D, "num_classes": C, "margin": CosFace(0.4), "sample_rate": 0.2}
    return PartialFC(**(settings | changes))


def batch(number: int = 0) -> tuple[Tensor, Tensor]:
    """Return embeddings that need a gradient, and labels."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(B, D, generator=generator).requires_grad_(), torch.randint(C, (B,), generator=generator)


def train(head: PartialFC, steps: int, start: int = 0) -> list[float]:
    """Return the losses of some steps."""
    losses = []
    for number in range(start, start + steps):
        value = head.loss(*batch(number))
        value.backward()
        head.step(0.5)
        losses.append(value.item())
    return losses
