"""What heads with a momentum encoder share: the encoder, and losses whose gradient is computed in the forward pass."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayface.heads.margins import Margin
from rayface.heads.sampling import keyed_generator


def momentum_encoder(net: nn.Module) -> nn.Module:
    """Return a copy of a network whose parameters are moved by `update_momentum_` only."""
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def update_momentum_(encoder: nn.Module, net: nn.Module, momentum: float) -> None:
    """Move the parameters to `momentum * encoder + (1 - momentum) * net`, and take over the net's mode.

    Buffers (batch-norm statistics) are those of the encoder's own forward passes.
    """
    encoder.train(net.training)
    torch._foreach_lerp_(list(encoder.parameters()), list(net.parameters()), 1 - momentum)


def prefixed_state(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    """Return the live tensors of a network under "PREFIX.NAME"."""
    return {f"{prefix}.{name}": tensor for name, tensor in net.state_dict().items()}


def random_units(shape: tuple[int, ...], seed: int, name: str, like: Tensor) -> Tensor:
    """Return random directions (..., D) that depend on seed and name; on the meta device only their shape."""
    if like.is_meta:
        return like.new_empty(shape)
    rows = torch.randn(shape, generator=keyed_generator("cpu", seed, name))
    return F.normalize(rows, dim=-1).to(like)


def check_momentum(momentum: float) -> None:
    """Raise ValueError for a momentum that no average has."""
    if not 0 <= momentum < 1:
        raise ValueError(f"head.options.momentum: {momentum}: must be at least 0 and below 1, usually 0.99 to 0.999")


def check_plain_margin(head: str, margin: Margin) -> None:
    """Raise ValueError for a margin that depends on running statistics or on the norms of embeddings."""
    if margin.state() or margin.penalty(torch.ones(1)) is not None:
        name = type(margin).__name__.lower()
        raise ValueError(f"head.margin: {name}: {head} takes margins of the cosine alone: cosface, arcface or combined")


def with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a scalar whose gradients by some inputs are known.

    Backward needs nothing else, so what the value was computed from may change before it.
    """
    result: Tensor = _KnownGradients.apply(value, len(inputs), *inputs, *gradients)
    return result


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.dtypes = [tensor.dtype for tensor in tensors[:count]]
        ctx.save_for_backward(*tensors[count:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        own = [(factor * gradient).to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return (None, None, *own, *[None] * len(gradients))
