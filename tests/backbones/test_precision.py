"""The last layers compute in float32 under autocast."""

import torch

from tests.backbones.narrow_nets import narrow


def test_embeddings_under_autocast_are_float32(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert narrow(name).eval()(torch.zeros(1, 3, 32, 32)).dtype == torch.float32
