"""The nets against forward passes written out with functions, from the state dict alone."""

from collections.abc import Callable
from functools import partial

import pytest
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


def iresnet(w: State, x: torch.Tensor) -> torch.Tensor:
    x = prelu(w, "prelu", bn(w, "bn1", conv(w, "conv1", x, padding=1)))
    for stage in range(1, 5):
        for block in count(w, f"layer{stage}"):
            k, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
            y = prelu(w, f"{k}.prelu", bn(w, f"{k}.bn2", conv(w, f"{k}.conv1", bn(w, f"{k}.bn1", x), padding=1)))
            y = bn(w, f"{k}.bn3", conv(w, f"{k}.conv2", y, stride, 1))
            if block == 0:
                x = bn(w, f"{k}.downsample.1", conv(w, f"{k}.downsample.0", x, stride))
            x = x + y
    x = bn(w, "bn2", x).flatten(1)
    return bn(w, "features", x @ w["fc.weight"].T + w["fc.bias"])


def mobilefacenet(w: State, x: torch.Tensor) -> torch.Tensor:
    def block(key: str, x: torch.Tensor, stride: int = 1, padding: int = 0, active: bool = True) -> torch.Tensor:
        x = bn(w, f"{key}.layers.1", conv(w, f"{key}.layers.0", x, stride, padding))
        return prelu(w, f"{key}.layers.2", x) if active else x

    def bottleneck(key: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        x = block(f"{key}.layers.1", block(f"{key}.layers.0", x), stride, 1)
        return block(f"{key}.layers.2", x, active=False)

    def bottlenecks(key: str, x: torch.Tensor) -> torch.Tensor:
        for i in count(w, f"{key}.layers"):
            x = x + bottleneck(f"{key}.layers.{i}", x, 1)
        return x

    x = block("layers.0", x, 2, 1)
    # a first stage of one block is one grouped convolution instead
    x = block("layers.1", x, 1, 1) if "layers.1.layers.0.weight" in w else bottlenecks("layers.1", x)
    for stage in (2, 4, 6):
        x = bottlenecks(f"layers.{stage + 1}", bottleneck(f"layers.{stage}", x, 2))
    x = block("features.layers.0", block("conv_sep", x), active=False).flatten(1)
    return bn(w, "features.layers.3", x @ w["features.layers.2.weight"].T)


def layer_norm(w: State, key: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{key}.weight"] + w[f"{key}.bias"]


def vit(w: State, images: torch.Tensor) -> torch.Tensor:
    patches = images.unfold(2, 9, 9).unfold(3, 9, 9).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"] + w["pos_embed"]
    width = x.shape[2]
    for i in count(w, "blocks"):
        k = f"blocks.{i}"
        q, key, v = (layer_norm(w, f"{k}.norm1", x) @ w[f"{k}.attn.qkv.weight"].T).split(width, dim=2)
        heads = []
        for h in range(8):
            own = slice(h * width // 8, (h + 1) * width // 8)
            logits = q[..., own] @ key[..., own].transpose(1, 2) / (width / 8) ** 0.5
            heads.append(logits.softmax(-1) @ v[..., own])
        x = x + torch.cat(heads, 2) @ w[f"{k}.attn.proj.weight"].T + w[f"{k}.attn.proj.bias"]
        y = layer_norm(w, f"{k}.norm2", x) @ w[f"{k}.mlp.fc1.weight"].T + w[f"{k}.mlp.fc1.bias"]
        x = x + y.clamp(0, 6) @ w[f"{k}.mlp.fc2.weight"].T + w[f"{k}.mlp.fc2.bias"]
    x = layer_norm(w, "norm", x).flatten(1)
    x = bn(w, "feature.1", x @ w["feature.0.weight"].T, eps=2e-5)
    return bn(w, "feature.3", x @ w["feature.2.weight"].T, eps=2e-5)


def mixfacenet(w: State, x: torch.Tensor, *, shuffle: bool) -> torch.Tensor:
    def block(key: str, x: torch.Tensor, activation: str, stride: int = 1, depthwise: bool = False) -> torch.Tensor:
        names = [k.removesuffix(".weight") for k in w if k.startswith(f"{key}.conv.") and k.endswith("weight")]
        out, start = [], 0
        for name in names:  # in the order of the kernels
            size, share = w[f"{name}.weight"].shape[-1], w[f"{name}.weight"].shape[0 if depthwise else 1]
            out.append(conv(w, name, x[:, start : start + share], stride, size // 2))
            start += share
        assert start == x.shape[1]
        x = bn(w, f"{key}.bn", torch.cat(out, 1))
        if activation == "prelu":
            return prelu(w, f"{key}.activ", x)
        return x * torch.sigmoid(x) if activation == "swish" else x

    def unit(key: str, x: torch.Tensor, activation: str, stride: int, shuffle: bool = shuffle) -> torch.Tensor:
        y = block(f"{key}.exp_conv", x, activation) if f"{key}.exp_conv.bn.weight" in w else x
        y = block(f"{key}.conv1", y, activation, stride, depthwise=True)
        if f"{key}.se.conv1.weight" in w:
            gate = conv(w, f"{key}.se.conv1", y.mean((2, 3), keepdim=True))
            y = y * torch.sigmoid(conv(w, f"{key}.se.conv2", gate * torch.sigmoid(gate)))
        y = block(f"{key}.conv2", y, "none")
        y = x + y if stride == 1 and x.shape == y.shape else y
        return torch.cat([y[:, 0::2], y[:, 1::2]], 1) if shuffle else y

    x = block("features.init_block.conv1", x, "prelu", 2)
    x = unit("features.init_block.conv2", x, "prelu", 1, shuffle=True)  # in every variant
    units = {stage: len({key.split(".")[2] for key in w if f"stage{stage}." in key}) for stage in range(1, 5)}
    for stage, halving in ((1, None), (2, 1), (3, 1), (4, 1 + units[4] // 2)):
        for i in range(1, units[stage] + 1):
            activation = "prelu" if stage == 1 else "swish"
            x = unit(f"features.stage{stage}.unit{i}", x, activation, 2 if i == halving else 1)
    x = block("tail", x, "prelu")
    x = bn(w, "feautre_layer.dw_conv.bn", conv(w, "feautre_layer.dw_conv.conv", x))
    return bn(w, "features_norm", conv(w, "feautre_layer.pw_conv.conv", x).flatten(1))


def vargfacenet(w: State, x: torch.Tensor) -> torch.Tensor:
    def norm(key: str, x: torch.Tensor, active: bool = True) -> torch.Tensor:
        x = bn(w, f"{key}.1", x, eps=2e-5)
        return prelu(w, f"{key}.2", x) if active else x

    def separable(key: str, x: torch.Tensor, stride: int = 1, active: bool = True) -> torch.Tensor:
        x = norm(f"{key}.0", conv(w, f"{key}.0.0", x, stride, 1))
        return norm(f"{key}.1", conv(w, f"{key}.1.0", x), active)

    def normal(key: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        y = separable(f"{key}.second", separable(f"{key}.first", x, stride), active=False)
        gate = prelu(w, f"{key}.se.gate.1", conv(w, f"{key}.se.gate.0", y.mean((2, 3), keepdim=True)))
        y = y * torch.sigmoid(conv(w, f"{key}.se.gate.2", gate))
        return prelu(w, f"{key}.prelu", y + (separable(f"{key}.shortcut", x, 2, False) if stride == 2 else x))

    def down(key: str, x: torch.Tensor) -> torch.Tensor:
        y = separable(f"{key}.left", x, 2, False) + separable(f"{key}.right", x, 2, False)
        y = separable(f"{key}.second", prelu(w, f"{key}.merge", y), active=False)
        return prelu(w, f"{key}.prelu", y + separable(f"{key}.shortcut", x, 2, False))

    x = x * 127.5 / 128  # (pixel - 127.5) / 128, as published
    x = normal("head.1", norm("head.0", conv(w, "head.0.0", x, padding=1)), 2)
    for stage, num_units in enumerate((3, 7, 4)):
        x = down(f"stages.{stage}.0", x)
        for i in range(1, num_units):
            x = normal(f"stages.{stage}.{i}", x)
    x = norm("expand", conv(w, "expand.0", x))
    x = norm("embed.1", conv(w, "embed.1.0", norm("embed.0", conv(w, "embed.0.0", x), False))).flatten(1)
    return bn(w, "embed.5", x @ w["embed.4.weight"].T + w["embed.4.bias"], eps=2e-5)


def randomised(net: nn.Module) -> nn.Module:
    """Give every scale, shift and statistic a value of its own, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(1)
    for key, tensor in net.state_dict().items():
        if tensor.dim() == 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(0.5 + noise if key.endswith(("weight", "running_var")) else noise - 0.5)
    return net


def oracle_of(name: str) -> Callable[[State, torch.Tensor], torch.Tensor]:
    if "mixfacenet" in name:
        return partial(mixfacenet, shuffle=name.startswith("shuffle"))
    family = name.split("_")[0].rstrip("0123456789")
    return {"mini": iresnet, "r": iresnet, "mbf": mobilefacenet, "vit": vit, "vargfacenet": vargfacenet}[family]


# Narrow where the family allows it: the structure is the published one, the products are few.
WIDTHS = {
    "mini": 1.0,
    "mbf": 0.125,
    "vit_t": 0.25,
    "mixfacenet_xs": 1.0,
    "shufflemixfacenet_xs": 1.0,
    "vargfacenet": 0.4,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_forward_pass_of_every_backbone_equals_an_independent_transcription(name: str) -> None:
    torch.manual_seed(0)
    width = WIDTHS.get(name, 0.5 if "mixfacenet" in name else 0.0625)
    net = randomised(build_backbone(name, width=width, embedding_size=24).double().eval())
    images = torch.rand(2, 3, 112, 112, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        embeddings = net(images)
        assert embeddings.std(0).min() > 1e-6  # the images reach every dimension
        torch.testing.assert_close(embeddings, oracle_of(name)(net.state_dict(), images), rtol=1e-9, atol=1e-9)
