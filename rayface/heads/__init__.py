"""Heads: compute a loss from embeddings and labels. They take plain arguments and do not import Ray."""

import inspect
from collections.abc import Callable, Mapping

from rayface.heads.adaptive_margins import AdaFace, CurricularFace, ElasticFace, MagFace
from rayface.heads.base import Head, HeadSettings
from rayface.heads.dcq import DCQ
from rayface.heads.f2c import F2C
from rayface.heads.margin_loss import NonFiniteEmbeddingsError
from rayface.heads.margins import ArcFace, CombinedMargin, CosFace, Margin
from rayface.heads.options import HeadOptions
from rayface.heads.partial_fc import PartialFC
from rayface.plugins import ensure_loaded

__all__ = [
    "DCQ",
    "F2C",
    "HEADS",
    "MARGINS",
    "ArcFace",
    "CosFace",
    "Head",
    "HeadOptions",
    "HeadSettings",
    "Margin",
    "NonFiniteEmbeddingsError",
    "PartialFC",
    "build_head",
    "build_margin",
    "head_class",
    "margin_parameters",
]

MARGINS: dict[str, Callable[..., Margin]] = {
    "cosface": CosFace,
    "arcface": ArcFace,
    "combined": CombinedMargin,
    "adaface": AdaFace,
    "elasticface": ElasticFace,
    "magface": MagFace,
    "curricularface": CurricularFace,
}
HEADS: dict[str, type[Head]] = {"partial_fc": PartialFC, "dcq": DCQ, "f2c": F2C}


def build_margin(name: str, **arguments: object) -> Margin:
    """Return a margin by its name in MARGINS with the arguments of its class; ValueError for an unknown name."""
    return _margin_class(name)(**arguments)


def margin_parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a margin by its name in MARGINS; ValueError for an unknown name."""
    return inspect.signature(_margin_class(name)).parameters


def _margin_class(name: str) -> Callable[..., Margin]:
    ensure_loaded()
    if name not in MARGINS:
        raise ValueError(f"head.margin {name!r} must be one of {', '.join(sorted(MARGINS))}, or registered by a plugin")
    return MARGINS[name]


def head_class(name: str) -> type[Head]:
    """Return the class of a head by its name in HEADS; ValueError for an unknown name."""
    ensure_loaded()
    if name not in HEADS:
        raise ValueError(f"head.name {name!r} must be one of {', '.join(sorted(HEADS))}, or registered by a plugin")
    return HEADS[name]


def build_head(name: str, settings: HeadSettings) -> Head:
    """Return this rank's part of a head by its name in HEADS.

    Raises:
        ValueError: an unknown name, or a setting that the head cannot work with.
    """
    return head_class(name).build(settings)
