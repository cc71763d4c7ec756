"""Registry of backbones by name."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from rayface.backbones.iresnet import IResNet
from rayface.backbones.mixfacenet import MIXNET_M, MIXNET_S, MixFaceNet
from rayface.backbones.mobilefacenet import MobileFaceNet
from rayface.backbones.timm import PREFIX, TimmNet
from rayface.backbones.vargfacenet import VarGFaceNet
from rayface.backbones.vit import VisionTransformer
from rayface.plugins import ensure_loaded

# Constructor by name; each takes embedding_size, image_size, width and dropout, some take more options.
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "mini": partial(IResNet, (2, 2, 2, 2), stem_channels=16),  # for CPUs, at 56 x 56 and 256-d
    "r18": partial(IResNet, (2, 2, 2, 2)),
    "r34": partial(IResNet, (3, 4, 6, 3)),
    "r50": partial(IResNet, (3, 4, 14, 3)),
    "r100": partial(IResNet, (3, 13, 30, 3)),
    "r200": partial(IResNet, (6, 26, 60, 6)),
    "mbf": partial(MobileFaceNet, (1, 4, 6, 2), scale=2),
    "mbf_large": partial(MobileFaceNet, (2, 8, 12, 4), scale=4),
    "mixfacenet_xs": partial(MixFaceNet, MIXNET_S, 16, scale=0.5, last_channels=512),
    "mixfacenet_s": partial(MixFaceNet, MIXNET_S, 16),
    "mixfacenet_m": partial(MixFaceNet, MIXNET_M, 24),
    "shufflemixfacenet_xs": partial(MixFaceNet, MIXNET_S, 16, scale=0.5, last_channels=512, shuffle=True),
    "shufflemixfacenet_s": partial(MixFaceNet, MIXNET_S, 16, shuffle=True),
    "shufflemixfacenet_m": partial(MixFaceNet, MIXNET_M, 24, shuffle=True),
    "vargfacenet": VarGFaceNet,
    "vit_t": partial(VisionTransformer, 256, 12),
    "vit_s": partial(VisionTransformer, 512, 12),
    "vit_b": partial(VisionTransformer, 512, 24),
    "vit_l": partial(VisionTransformer, 768, 24, drop_path=0.05, mask_ratio=0.05),
    "vit_h": partial(VisionTransformer, 1024, 48, drop_path=0.05, mask_ratio=0.05),
}
_BUILT_IN = dict(BACKBONES)


def is_built_in(name: str) -> bool:
    """Return whether a name is that of one of rayface's backbones, which no plugin has replaced."""
    return name in _BUILT_IN and BACKBONES.get(name) is _BUILT_IN[name]


def build_backbone(
    name: str,
    *,
    embedding_size: int = 512,
    image_size: int = 112,
    width: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> nn.Module:
    """Build the backbone `name`: (N, 3, image_size, image_size) in [-1, 1] -> (N, embedding_size), raw.

    `width` multiplies the channels of the published network (None: 1), `dropout` is the rate before the last linear
    layer, `options` are specific to the backbone (`checkpointing`, ...). Weights are random, drawn from torch's global
    generator. `timm/NAME` is a model of the timm library, if installed; it has no width.

    Raises ValueError for an unknown name or option and for a value out of range.
    """
    ensure_loaded()
    net = partial(TimmNet, name.removeprefix(PREFIX)) if name.startswith(PREFIX) else BACKBONES.get(name)
    if net is None:
        raise ValueError(f"backbone.name {name!r} is not a known backbone; {_suggestion(name, BACKBONES)}")
    accepted = inspect.signature(net).parameters
    for option in options:
        if option not in accepted:
            raise ValueError(f"backbone.{option} is not an option of {name}; {_suggestion(option, accepted)}")
    _check("embedding_size", embedding_size, embedding_size >= 1, "must be at least 1")
    _check("image_size", image_size, image_size >= 16, "must be at least 16 pixels; 112 is usual")
    _check("width", width, width is None or width > 0, "must be above 0; 1.0 is the published network")
    _check("dropout", dropout, 0 <= dropout < 1, "must be in [0, 1)")
    if "width" in accepted:
        options["width"] = 1.0 if width is None else width
    elif width is not None:
        raise ValueError(f"backbone.width is not an option of {name}; leave it out")
    return net(embedding_size=embedding_size, image_size=image_size, dropout=dropout, **options)


def _suggestion(name: str, known: Any) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(known))}"


def _check(field: str, value: float | None, valid: bool, rule: str) -> None:
    if not valid:
        raise ValueError(f"backbone.{field} {value} {rule}")
