"""Activation checkpointing that does not change batch statistics."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run `block(x)`, keep only `x`, and recompute the block in the backward pass.

    Saves the memory of the block's activations at the cost of one more forward pass. Gradients and running statistics
    are those of a plain call.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    # Momentum 0 instead of track_running_stats = False: both passes must save the same tensors.
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms if norm.num_batches_tracked is not None]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        counted = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        for now, before in zip(counted, counts, strict=True):
            now.copy_(before)
