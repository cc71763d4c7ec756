"""Activations and parameters of backbones, against real forward passes."""

import pytest
import torch

from rayface.backbones import build_backbone
from rayface.config import with_overrides
from rayface.plan.backbone_cost import SavedBytes, net_size


@pytest.mark.parametrize(("name", "bf16"), [("mini", False), ("mini", True), ("vit_t", True)])
def test_activations_of_a_real_forward_equal_planned_bytes(small, name, bf16):
    width = {"mini": 0.5, "vit_t": 0.125}[name]
    size = net_size(with_overrides(small, {"backbone.name": name, "backbone.width": width}), bf16=bf16)
    net = build_backbone(name, embedding_size=64, image_size=32, width=width).train()
    counter = SavedBytes(net)
    with counter, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        net(torch.zeros(6, 3, 32, 32))
    assert size.activation_bytes(6) == pytest.approx(counter.total, rel=0.01)


def test_num_parameters_of_a_preset_equal_the_built_net(small):
    size = net_size(small, bf16=False)
    net = build_backbone("mini", embedding_size=64, image_size=32, width=0.5)
    assert size.parameters == sum(p.numel() for p in net.parameters())
    assert size.parameters - size.trainable == 64  # the scale of the last normalisation
