"""Settings of heads and margins from a config, and their checks."""

from dataclasses import fields
from inspect import Parameter
from typing import Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from rayface.config import Config, HeadConfig, first_error
from rayface.heads import build_margin, head_class, margin_parameters
from rayface.heads.base import HeadSettings
from rayface.heads.fused_softmax import check_fused, check_fused_device
from rayface.heads.margins import Margin
from rayface.heads.options import HeadOptions
from rayface.precision import uses_bf16
from rayface.values import to_text

_ROW_KEYS = ("sample_rate", "center_update", "storage_dtype", "compute_dtype", "kernel", "logit_memory", "host_memory")
"""Keys of the config group `head` that are fields of HeadSettings by the same name: of heads with class centers."""
_MARGIN_KEYS = {"margin": "head.margin_value", "scale": "head.scale", "conflict_threshold": "head.conflict_threshold"}
"""Config keys of the parameters of margins that are no options."""


def scale_of(head: HeadConfig) -> float:
    """Return head.scale, or that of the head's paper."""
    return head_class(head.name).usual_scale if head.scale is None else head.scale


def compute_dtype_of(head: HeadConfig, *, gpu: bool, bf16: bool) -> Literal["fp32", "bf16"]:
    """Return head.compute_dtype, resolved for workers whose backbone trains in bf16 or not."""
    if head.compute_dtype == "auto":
        return "bf16" if gpu and bf16 else "fp32"
    return head.compute_dtype


def build_config_margin(head: HeadConfig) -> Margin:
    """Build the margin of a config: head.margin with its value, its options and the scale.

    Raises:
        ValueError: an unknown margin or option, or a value out of range; one line that names its key.
    """
    arguments = _margin_arguments(head)
    try:
        return build_margin(head.margin, **arguments)
    except (TypeError, ValueError) as error:
        name, _, rule = str(error).partition(":")  # of a parameter, see Margin
        if name in arguments or name in margin_parameters(head.margin):
            raise ValueError(f"{_margin_key(name)}:{rule}") from error
        raise ValueError(f"head.margin: {head.margin}: {error}") from error


def margin_defaults(head: str, margin: str) -> dict[str, object]:
    """Return the values of head.margin_value and head.scale where they are unset, by key; ValueError: unknown names."""
    kind, parameters = head_class(head), margin_parameters(margin)
    usual = {"margin": kind.usual_margin, "scale": kind.usual_scale}
    return {
        _MARGIN_KEYS[name]: parameters[name].default if value is None else value
        for name, value in usual.items()
        if name in parameters
    }


def margin_options(margin: str) -> list[str]:
    """Return the names of a margin's options; ValueError for an unknown margin."""
    named = (each for each in margin_parameters(margin).values() if each.kind is not Parameter.VAR_KEYWORD)
    return [each.name for each in named if each.name not in _MARGIN_KEYS]


def _margin_arguments(head: HeadConfig) -> dict[str, object]:
    parameters = margin_parameters(head.margin).values()

    def takes(name: str) -> bool:
        return any(parameter.name == name or parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)

    for name in _MARGIN_KEYS.keys() & head.margin_options.keys():
        value = head.margin_options[name]
        raise ValueError(
            f"head.margin_options.{name}: {value!r}: is a key of its own: take it out of head.margin_options and set "
            f"{_margin_key(name)}={to_text(value)}"
        )
    for name in head.margin_options:
        if not takes(name):
            known = ", ".join(margin_options(head.margin)) or "none"
            raise ValueError(f"head.margin_options.{name}: {head.margin} has no such option: it has {known}")
    given = {"margin": head.margin_value, "scale": head.scale, "conflict_threshold": head.conflict_threshold}
    for name, value in given.items():
        if value is not None and not takes(name):
            key = _margin_key(name)
            raise ValueError(f"{key}: {value}: {head.margin} takes none: set {key}=null")
    kind = head_class(head.name)
    usual = {"margin": kind.usual_margin, "scale": kind.usual_scale}
    found = {name: usual.get(name) if value is None else value for name, value in given.items() if takes(name)}
    return {**{name: value for name, value in found.items() if value is not None}, **head.margin_options}


def _margin_key(name: str) -> str:
    """Return the config key of a parameter of a margin."""
    return _MARGIN_KEYS.get(name, f"head.margin_options.{name}")


def build_config_options(head: HeadConfig) -> HeadOptions:
    """Return head.options as the head's own settings.

    Raises:
        ValueError: a setting that the head does not have, or a value of another type.
    """
    kind = head_class(head.name).options_class
    known = [field.name for field in fields(kind)]
    for name in head.options:
        if name not in known:
            settings = ", ".join(known) or "none"
            raise ValueError(f"head.options.{name}: {head.name} has no such setting: it has {settings}")
    try:
        return TypeAdapter(kind).validate_python(head.options)
    except ValidationError as error:
        raise ValueError(f"head.options.{first_error(error)}") from error


def head_settings(
    config: Config, num_classes: int, *, device: torch.device | str = "cpu", backbone: nn.Module | None = None
) -> HeadSettings:
    """Return the settings of a config's head.

    Raises:
        ValueError: an unknown head, margin or option, or a value out of range.
    """
    head, optim, device = config.head, config.optim, torch.device(device)
    bf16 = uses_bf16(config.train.precision, device)
    rows = {key: getattr(head, key) for key in _ROW_KEYS}
    rows["compute_dtype"] = compute_dtype_of(head, gpu=device.type == "cuda", bf16=bf16)
    return HeadSettings(
        embedding_size=config.backbone.embedding_size,
        num_classes=num_classes,
        margin=build_config_margin(head),
        optimizer=optim.name,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        seed=config.train.seed,
        device=device,
        options=build_config_options(head),
        batch_size=config.train.batch_size,
        backbone=backbone,
        **rows,
    )


def check_config_head(config: Config) -> None:
    """Check the head's settings before a worker starts.

    Raises:
        ValueError: settings that the head, or the fused kernels, cannot work with; one line.
    """
    settings = head_settings(config, num_classes=1)
    kind = head_class(config.head.name)
    kind.check(settings)
    if kind.stream != "images":
        _check_pairs(config)
    if config.head.kernel == "fused":
        check_fused(settings.margin, config.backbone.embedding_size)
        if config.train.device == "cpu":
            check_fused_device("cpu")


def _check_pairs(config: Config) -> None:
    """Refuse what needs class centers, or a batch in parts, of a head that trains on pairs."""
    head, train = config.head, config.train
    for key in _ROW_KEYS:
        value, default = getattr(head, key), getattr(HeadConfig(), key)
        if value != default:
            raise ValueError(f"head.{key}: {value}: head.name={head.name} keeps no class centers: must be {default}")
    if train.max_batch_per_worker is not None:
        raise ValueError(
            f"train.max_batch_per_worker: {train.max_batch_per_worker}: head.name={head.name} takes its batch at once: "
            "leave it out, and use more workers, a smaller batch or backbone.checkpointing"
        )
    if train.teacher is not None:
        raise ValueError(
            f"train.teacher: {train.teacher}: cannot be combined with head.name={head.name}: distil with partial_fc"
        )
