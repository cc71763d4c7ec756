"""Recomputation of stages in the backward pass."""

import torch

from tests.backbones.narrow_nets import narrow


def test_checkpointing_with_dropout_changes_neither_gradients_nor_batch_statistics(name: str) -> None:
    nets = narrow(name, dropout=0.2).double(), narrow(name, dropout=0.2, checkpointing=True).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for net in nets:
        torch.manual_seed(1)  # the same dropout and masks
        net.train()(images).square().sum().backward()
    for (key, one), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=key)
    for key, buffer in nets[0].named_buffers():
        torch.testing.assert_close(buffer, nets[1].get_buffer(key), msg=key)
