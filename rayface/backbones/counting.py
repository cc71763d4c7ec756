"""Size of a network: parameters and multiply-adds."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(net: nn.Module) -> int:
    """Return the number of trainable and frozen parameters of `net`, without buffers."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_macs(net: nn.Module, image_size: int = 112) -> int:
    """Return the multiply-adds of one image's forward pass: convolutions, linear layers, attention.

    Networks on the meta device are supported, without any computation. The training mode is unchanged.
    """
    parameter = next(net.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    training = net.training
    net.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(image)
    finally:
        net.train(training)
    return counter.get_total_flops() // 2  # torch counts a multiply-add as two operations
