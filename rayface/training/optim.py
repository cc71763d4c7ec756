"""Optimizers of the backbone; the head updates its class centers itself."""

import contextlib
from collections.abc import Iterator

from torch import nn, optim


def build_optimizer(
    name: str, module: nn.Module, *, lr: float, momentum: float, weight_decay: float
) -> optim.Optimizer:
    """Return SGD with momentum, or AdamW; weight decay on every trainable parameter, as in arcface_torch.

    Raises:
        ValueError: an unknown name.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if name == "sgd":
        return optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    if name == "adamw":
        return optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    raise ValueError(f"optim.name: {name!r}: must be sgd or adamw")


@contextlib.contextmanager
def scaled_rate(optimizer: optim.Optimizer, factor: float) -> Iterator[None]:
    """Multiply the learning rates inside the context; schedules do not see it."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] *= factor
    try:
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = lr
