"""The nets are the published ones: parameters, multiply-adds, names and shapes of their state dicts."""

import hashlib

import pytest
import torch
from torch import nn

from rayface.backbones import BACKBONES, build_backbone
from rayface.backbones.counting import count_macs, count_parameters

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


def on_meta(name: str) -> nn.Module:
    """Build the net without memory for its weights."""
    with torch.device("meta"):
        return build_backbone(name)


def fingerprint(net: nn.Module) -> str:
    lines = sorted(f"{name}:{tuple(tensor.shape)}" for name, tensor in net.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("name", "parameters", "gmacs", "state"), PUBLISHED)
def test_size_names_and_shapes(name: str, parameters: int, gmacs: float, state: str | None) -> None:
    net = on_meta(name)
    assert count_parameters(net) == parameters
    assert count_macs(net) / 1e9 == pytest.approx(gmacs, rel=1e-3)
    if state is not None:
        assert fingerprint(net) == state


def test_every_other_net_is_ours_or_unpublished() -> None:
    assert set(BACKBONES) - {row[0] for row in PUBLISHED} == {"mini", "vit_h"}


def test_vit_h_is_wider_and_deeper_than_vit_l() -> None:
    net = on_meta("vit_h")
    assert len(net.blocks) == 48
    assert net.pos_embed.shape == (1, 144, 1024)


def test_counting_leaves_the_net_as_it_was() -> None:
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
