"""Networks without values."""

import subprocess
import sys

import torch

from rayface.backbones import build_backbone
from rayface.backbones.shapes import shapes_only

_WITHOUT_DYNAMO = """
import sys
from rayface.backbones.registry import BACKBONES, build_backbone
from rayface.backbones.shapes import shapes_only

with shapes_only():
    for name in BACKBONES:
        build_backbone(name)
print([name for name in sys.modules if name.startswith("torch._dynamo")])
"""


def test_shapes_only_gives_the_shapes_of_the_network_on_the_meta_device():
    with shapes_only():
        net = build_backbone("mini", embedding_size=64, image_size=56)
    real = build_backbone("mini", embedding_size=64, image_size=56)
    assert [(name, p.shape) for name, p in net.named_parameters()] == [(n, p.shape) for n, p in real.named_parameters()]
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    assert torch.nn.init.normal_(torch.zeros(9)).abs().sum() > 0  # as before


def test_shapes_only_of_every_backbone_does_not_import_torch_dynamo():
    done = subprocess.run([sys.executable, "-c", _WITHOUT_DYNAMO], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
