"""Check whether a run can be resumed with changed settings, by its newest checkpoint, before anything is written."""

import json
from collections.abc import Mapping
from dataclasses import replace

import torch

from rayface import config as configs
from rayface.backbones.shapes import shapes_only
from rayface.config import Config
from rayface.data.streaming.sample_order import SampleOrder
from rayface.training.builders import build_config_backbone, build_config_head
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.optimizer_state import by_name
from rayface.training.checkpointing.progress import Progress
from rayface.training.distributed import World
from rayface.training.optim import build_optimizer
from rayface.training.run_directory import RunDirectory
from rayface.training.schedules import RunLength, build_schedule

Sizes = Mapping[str, tuple[int, ...]]


def check_resumable(run: RunDirectory, config: Config, sample_order: SampleOrder) -> None:
    """Refuse settings that the newest checkpoint of a run cannot be loaded with; nothing is written.

    Builds the backbone without memory, and a head of two classes.

    Args:
        sample_order: sample order of the resumed run.

    Raises:
        ValueError: one line with the changed keys.
    """
    newest = checkpoint.newest_described(run.path)
    if newest is None:
        return
    progress = Progress.read(newest)
    changes = _Changes(
        configs.flat(configs.from_dict(dict(progress.config or {})), configs.TRAINING),
        configs.flat(config, configs.TRAINING),
    )
    _check_steps(progress, config.train.epochs, sample_order)
    sizes = checkpoint.saved_sizes(newest)
    with shapes_only():
        backbone = build_config_backbone(config)
        moments = checkpoint.empty_like_saved(newest, "optimizer.")
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    # The fused kernels have the same state, and would refuse the CPU.
    unfused = replace(config, head=replace(config.head, kernel="chunked"))
    head = build_config_head(unfused, 2, world, backbone)
    weights = {f"backbone.{name}": tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    rows = {f"head.{name}": tuple(tensor.shape[1:]) for name, tensor in head.row_tensors().items()}
    replicated = {f"head.{name}": tuple(tensor.shape) for name, tensor in head.replicated_tensors().items()}
    changes.check(sizes, weights, ("backbone", "data"))
    by_name(newest, backbone, moments)
    changes.check({name: size[1:] for name, size in sizes.items()}, rows, ("head", "optim"))
    changes.check(sizes, replicated, ("head", "optim"))
    margin = head.values().get("margin")
    for name in (margin.keys() if isinstance(margin, dict) else set()) - progress.head.get("margin", {}).keys():
        raise changes.refusal(("head",), f"has no {name} of the margin")
    parameter = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1))])
    optimizer = build_optimizer(config.optim.name, parameter, lr=1.0, momentum=0.0, weight_decay=0.0)
    schedule = build_schedule(config.schedule, optimizer, RunLength(total_steps=1, steps_per_epoch=1))
    schedule.load_state_dict(dict(progress.schedule))


def _check_steps(progress: Progress, epochs: float, sample_order: SampleOrder) -> None:
    """Refuse another order of the samples, and an end before the step of the checkpoint."""
    if progress.plan != json.loads(json.dumps(vars(sample_order))):
        raise ValueError(
            "train.output: the run draws its samples in another order than this version of rayface (layout "
            f"by_identity, chunks of {progress.plan.get('chunk_images')} images): finish it with the version that "
            "started it, or start a new run"
        )
    total_steps = sample_order.total_steps(epochs)
    if progress.step > total_steps:
        raise ValueError(
            f"train.epochs: {epochs:g}: ends at step {total_steps}, the run is at step {progress.step}: "
            f"must be at least {progress.step / sample_order.steps_per_epoch:.4g}"
        )


class _Changes:
    """Settings of the checkpoint's run and of the resumed one, by key."""

    def __init__(self, before: Mapping[str, object], now: Mapping[str, object]) -> None:
        self._before, self._now = before, now

    def check(self, saved: Sizes, wanted: Sizes, groups: tuple[str, ...]) -> None:
        for name, shape in wanted.items():
            if name not in saved:
                raise self.refusal(groups, f"has no {name}")
            if saved[name] != shape:
                raise self.refusal(groups, f"has {name} of shape {saved[name]}, not {shape}")

    def refusal(self, groups: tuple[str, ...], reason: str) -> ValueError:
        changed = [
            f"{key}: {value!r}: the run was started with {self._before.get(key)!r}"
            for key, value in self._now.items()
            if key.partition(".")[0] in groups and self._before.get(key) != value
        ]
        said = "; ".join(changed) or "train.output: the run is of another version"
        return ValueError(f"{said}, and its checkpoint {reason}: must not change on a resume")
