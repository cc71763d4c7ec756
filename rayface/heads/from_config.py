"""Build and check margins and heads from a config."""

from rayface.config import Config, HeadConfig
from rayface.heads import build_margin
from rayface.heads.fused_softmax import check_fused, check_fused_device
from rayface.heads.margins import Margin


def build_config_margin(head: HeadConfig) -> Margin:
    """Build the margin of a config: head.margin with its value, its options and the scale.

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


def check_config_head(config: Config) -> None:
    """Check the head's settings before a worker starts.

    Raises:
        ValueError: as `build_config_margin`; settings that the fused kernels cannot work with.
    """
    margin = build_config_margin(config.head)
    if config.head.kernel == "fused":
        check_fused(margin, config.backbone.embedding_size)
        if config.train.device == "cpu":
            check_fused_device("cpu")
