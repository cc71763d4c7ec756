"""What every family of nets promises, on narrow ones."""

import pytest
import torch
from torch import nn

from rayface.backbones import build_backbone
from rayface.backbones.counting import count_macs

NARROW = {
    "mini": 0.25,
    "mbf": 0.125,
    "vit_t": 0.0625,
    "vargfacenet": 0.2,
    "mixfacenet_m": 0.3,
    "shufflemixfacenet_s": 0.3,
}


@pytest.fixture(params=NARROW, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def narrow(name: str, *, image_size: int = 32, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return build_backbone(name, width=NARROW[name], embedding_size=16, image_size=image_size, **options)


@pytest.mark.parametrize("image_size", [30, 48, 112])
def test_images_of_any_size(name: str, image_size: int) -> None:
    net = narrow(name, image_size=image_size).eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, image_size, image_size)).shape == (2, 16)


def macs_of_layers(net: nn.Module, image_size: int) -> int:
    """Multiply-adds of convolutions and linear layers by their own shapes, and of attention by its formula."""
    total = 0

    def add(layer: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += out.numel() * layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        elif isinstance(layer, nn.Linear):
            total += out.numel() * layer.in_features
        elif hasattr(layer, "qkv"):  # logits, and the sum of the values
            total += 2 * out.shape[1] ** 2 * out.shape[2]

    hooks = [layer.register_forward_hook(add) for layer in net.modules()]
    net.eval()(torch.zeros(1, 3, image_size, image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("image_size", [48, 112])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_multiply_adds_are_those_of_the_layers_at_any_width_and_size(name: str, factor: float, image_size: int) -> None:
    with torch.device("meta"):
        net = build_backbone(name, width=factor * NARROW[name], embedding_size=16, image_size=image_size)
    assert count_macs(net, image_size) == macs_of_layers(net, image_size)


def test_embeddings_are_float32_under_autocast(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert narrow(name).eval()(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_memory_layout_changes_nothing(name: str) -> None:
    net = narrow(name).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        wanted = net(images)
        net = net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(net(images.to(memory_format=torch.channels_last)), wanted, rtol=1e-9, atol=1e-9)


def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    net = narrow(name).train()  # else data-parallel training would have to search for unused ones
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None] == []


def test_checkpointing_changes_neither_gradients_nor_batch_statistics(name: str) -> None:
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


def test_dropout_acts_in_training_only(name: str) -> None:
    net = narrow(name, dropout=0.9)
    plain = narrow(name)
    assert net.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(images), plain.eval()(images))
        torch.manual_seed(1)
        dropped = net.train()(images)
        torch.manual_seed(1)
        assert not torch.allclose(dropped, plain.train()(images))
