"""Backbones: networks that map aligned face images to embeddings."""

from typing import TYPE_CHECKING, Any

from rayface.backbones.registry import BACKBONES, build_backbone

if TYPE_CHECKING:
    from rayface.backbones.weights import load_backbone

__all__ = ["BACKBONES", "build_backbone", "load_backbone"]


def __getattr__(name: str) -> Any:
    """Import the readers of weight files only for whoever loads some: building a net needs PyTorch alone."""
    if name == "load_backbone":
        from rayface.backbones.weights import load_backbone

        return load_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
