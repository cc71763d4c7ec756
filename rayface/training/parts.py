"""Parts that a config asks for, built alike on the driver, which checks, and on the workers."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rayface.backbones import build_backbone
from rayface.config import Config, HeadConfig
from rayface.heads import build_head, build_margin
from rayface.heads.margins import Margin
from rayface.training.distributed import World


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


def build_config_head(config: Config, num_classes: int, world: World) -> Any:
    """Build this rank's part of the class layer."""
    head = config.head
    return build_head(
        head.name,
        embedding_size=config.backbone.embedding_size,
        num_classes=num_classes,
        margin=build_config_margin(head),
        sample_rate=head.sample_rate,
        center_update=head.center_update,
        optimizer=config.optim.name,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        storage_dtype=head.storage_dtype,
        compute_dtype=head.compute_dtype,
        logit_memory=head.logit_memory,
        host_memory=head.host_memory,
        seed=config.train.seed,
        device=world.device,
    )


def unsynced(module: nn.Module) -> AbstractContextManager[None]:
    """While inside, gradients of a data-parallel module add up on each rank and are not averaged yet."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def data_parallel(backbone: nn.Module, world: World) -> nn.Module:
    """The backbone with gradients averaged over the ranks; itself where there is one rank."""
    if world.size == 1:
        return backbone
    # Batch-norm statistics stay each rank's own while training, and are averaged when they are used.
    return DistributedDataParallel(
        backbone,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
