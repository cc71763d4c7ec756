"""Parts that a config asks for, built alike on the driver, which checks, and on the workers."""

from torch import nn

from rayface.backbones import build_backbone
from rayface.config import Config, HeadConfig
from rayface.heads import build_margin
from rayface.heads.margins import Margin


def build_config_margin(head: HeadConfig) -> Margin:
    """Build it from head.margin, its value, its options and the scale.

    Raises:
        ValueError: an unknown margin or option, or a value out of range.
    """
    options = {"scale": head.scale, **head.margin_options}
    if head.margin_value is not None:
        options["margin"] = head.margin_value
    if head.conflict_threshold is not None:
        options["conflict_threshold"] = head.conflict_threshold
    try:
        return build_margin(head.margin, **options)
    except TypeError as error:
        raise ValueError(f"head.margin_options: {options!r}: {head.margin} does not take them all") from error


def build_config_backbone(config: Config) -> nn.Module:
    """Build it with random weights for data.image_size.

    Raises:
        ValueError: an unknown name or a value out of range.
    """
    backbone = config.backbone
    options = {"checkpointing": True} if backbone.checkpointing else {}
    return build_backbone(
        backbone.name,
        embedding_size=backbone.embedding_size,
        image_size=config.data.image_size,
        width=backbone.width,
        dropout=backbone.dropout,
        **options,
    )
