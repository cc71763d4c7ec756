"""Nets that turn aligned face images into embeddings, by name."""

from rayface.backbones.registry import BACKBONES, build_backbone
from rayface.backbones.weights import load_backbone

__all__ = ["BACKBONES", "build_backbone", "load_backbone"]
