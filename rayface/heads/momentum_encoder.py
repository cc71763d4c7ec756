"""What heads with a momentum encoder share: the encoder, and losses whose gradient is computed in the forward pass."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Embed(Protocol):
    """Runs a network as the training step runs the backbone: same precision, data-parallel if it is trained."""

    def __call__(self, images: Tensor, net: nn.Module | None = None) -> Tensor:
        """Return raw embeddings (n, D) of images (n, ...), of the trained backbone or of another network."""


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
