"""Counts of parameters and multiply-adds; the published nets have the published ones."""

import hashlib

import pytest
import torch
from torch import nn

from rayface.backbones import BACKBONES, build_backbone
from rayface.backbones.counting import count_macs, count_parameters
from tests.backbones.narrow_nets import NARROW, on_meta


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
def test_count_macs_at_any_width_and_size_is_the_sum_over_the_layers(name: str, factor: float, image_size: int) -> None:
    with torch.device("meta"):
        net = build_backbone(name, width=factor * NARROW[name], embedding_size=16, image_size=image_size)
    assert count_macs(net, image_size) == macs_of_layers(net, image_size)


# name, parameters, multiply-adds / 1e9 at 112 x 112, fingerprint of the published state dict (vargfacenet's is MXNet's)
PUBLISHED = [
    ("r18", 24_025_600, 2.61, "31bf675e59f4fda4"),
    ("r34", 34_139_328, 4.4596, "840640ff0e76e0c9"),
    ("r50", 43_590_848, 6.3093, "2771a5e3db26a3fe"),
    ("r100", 65_156_160, 12.0896, "957bd9830adf8fc8"),
    ("r200", 118_833_920, 23.4189, "c92e8f106bb593ca"),
    ("mbf", 2_059_520, 0.4375, "f6216ed5847ad7fb"),
    ("mbf_large", 6_314_880, 1.8165, "f22ae38e51adc605"),
    ("vit_t", 19_137_792, 1.5049, "23871f4cd34d1433"),
    ("vit_s", 76_023_296, 5.7465, "e51913b4a9307c62"),
    ("vit_b", 113_833_472, 11.4372, "7ce0b207e531d342"),
    ("vit_l", 255_684_352, 25.3378, "cf1b6393c9aac9ec"),
    ("mixfacenet_xs", 1_040_866, 0.0766, "f174ef3f99134ffa"),
    ("shufflemixfacenet_xs", 1_040_866, 0.0766, "f174ef3f99134ffa"),
    ("mixfacenet_s", 3_073_110, 0.2181, "5b699c435b6907d0"),
    ("shufflemixfacenet_s", 3_073_110, 0.2181, "5b699c435b6907d0"),
    ("mixfacenet_m", 3_953_046, 0.3034, "c07be17395dd6c98"),
    ("shufflemixfacenet_m", 3_953_046, 0.3034, "c07be17395dd6c98"),
    ("vargfacenet", 5_198_292, 0.5126, None),
]


def fingerprint(net: nn.Module) -> str:
    lines = sorted(f"{name}:{tuple(tensor.shape)}" for name, tensor in net.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("name", "parameters", "gmacs", "state"), PUBLISHED)
def test_published_net_has_its_parameters_macs_names_and_shapes(
    name: str, parameters: int, gmacs: float, state: str | None
) -> None:
    net = on_meta(name)
    assert count_parameters(net) == parameters
    assert count_macs(net) / 1e9 == pytest.approx(gmacs, rel=1e-3)
    if state is not None:
        assert fingerprint(net) == state


def test_nets_without_published_weights_are_mini_and_vit_h() -> None:
    assert set(BACKBONES) - {row[0] for row in PUBLISHED} == {"mini", "vit_h"}


def test_count_macs_of_a_net_in_training_leaves_it_as_it_was() -> None:
    net = build_backbone("mini", image_size=32, width=0.25).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    # stem, then two blocks a stage with a 1x1 shortcut in the first, then the linear layer
    assert (
        count_macs(net, 32)
        == 3 * 4 * 9 * 32**2
        + sum(
            9 * a * c * (2 * s) ** 2 + 9 * c * c * s**2 + a * c * s**2 + 2 * 9 * c * c * s**2
            for a, c, s in ((4, 4, 16), (4, 8, 8), (8, 16, 4), (16, 32, 2))
        )
        + 32 * 2**2 * 512
    )
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
