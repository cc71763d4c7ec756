"""Class layers: what turns embeddings and labels into a loss. They take plain arguments and import no Ray."""

from collections.abc import Callable
from typing import Any

from rayface.heads.adaptive_margins import AdaFace, CurricularFace, ElasticFace, MagFace
from rayface.heads.margin_loss import NonFiniteEmbeddingsError
from rayface.heads.margins import ArcFace, CombinedMargin, CosFace, Margin
from rayface.heads.partial_fc import PartialFC

__all__ = ["HEADS", "MARGINS", "NonFiniteEmbeddingsError", "PartialFC", "build_head", "build_margin"]

MARGINS: dict[str, Callable[..., Margin]] = {
    "cosface": CosFace,
    "arcface": ArcFace,
    "combined": CombinedMargin,
    "adaface": AdaFace,
    "elasticface": ElasticFace,
    "magface": MagFace,
    "curricularface": CurricularFace,
}
HEADS: dict[str, Callable[..., Any]] = {"partial_fc": PartialFC}


def build_margin(name: str, **arguments: Any) -> Margin:
    """Return a margin by its name in MARGINS with the arguments of its class; ValueError for an unknown name."""
    if name not in MARGINS:
        raise ValueError(f"head.margin {name!r} must be one of {', '.join(sorted(MARGINS))}")
    return MARGINS[name](**arguments)


def build_head(name: str, **arguments: Any) -> Any:
    """Return a head by its name in HEADS with the arguments of its class; ValueError for an unknown name."""
    if name not in HEADS:
        raise ValueError(f"head.name {name!r} must be one of {', '.join(sorted(HEADS))}")
    return HEADS[name](**arguments)
