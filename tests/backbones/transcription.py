"""Forward passes written out with functions from a state dict alone: what their layers share, and the comparison."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from rayface.backbones import build_backbone
from rayface.backbones.registry import BACKBONES

State = dict[str, torch.Tensor]


def bn(w: State, key: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    shape = (1, -1) + (1,) * (x.dim() - 2)
    mean, var = w[f"{key}.running_mean"].view(shape), w[f"{key}.running_var"].view(shape)
    return (x - mean) / (var + eps).sqrt() * w[f"{key}.weight"].view(shape) + w[f"{key}.bias"].view(shape)


def prelu(w: State, key: str, x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, x * w[f"{key}.weight"].view(1, -1, 1, 1))


def conv(w: State, key: str, x: torch.Tensor, stride: int = 1, padding: int = 0) -> torch.Tensor:
    weight = w[f"{key}.weight"]
    return F.conv2d(x, weight, w.get(f"{key}.bias"), stride, padding, groups=x.shape[1] // weight.shape[1])


def count(w: State, key: str) -> range:
    """The numbers of the modules in the list called `key`."""
    return range(1 + max(int(name[len(key) + 1 :].split(".")[0]) for name in w if name.startswith(f"{key}.")))


def randomised(net: nn.Module) -> nn.Module:
    """Give every scale, shift and statistic a value of its own, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in net.state_dict().items():
        if tensor.dim() == 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(0.5 + noise if key.endswith(("weight", "running_var")) else noise - 0.5)
    return net


def names_of(family: type[nn.Module]) -> list[str]:
    """Return the names in the registry that build a net of this class."""
    return [name for name, net in BACKBONES.items() if getattr(net, "func", net) is family]


def assert_equals_transcription(
    name: str, width: float, forward: Callable[[State, torch.Tensor], torch.Tensor]
) -> None:
    """Compare a net with its forward pass written out; narrow: the structure is the published one, products are few."""
    torch.manual_seed(0)
    net = randomised(build_backbone(name, width=width, embedding_size=24).double().eval())
    images = torch.rand(2, 3, 112, 112, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        embeddings = net(images)
        assert embeddings.std(0).min() > 1e-6  # the images reach every dimension
        torch.testing.assert_close(embeddings, forward(net.state_dict(), images), rtol=1e-9, atol=1e-9)
