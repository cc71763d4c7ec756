"""Checks of what a run trains, which need PyTorch but not Ray: head, margin, schedule, backbone, resume."""

from types import SimpleNamespace
from typing import cast

from torch.optim import Optimizer

from rayface.backbones.shapes import shapes_only
from rayface.config import Config
from rayface.heads import head_class
from rayface.heads.from_config import check_config_head
from rayface.training.builders import build_config_backbone, load_start
from rayface.training.distillation import check_distillation, teacher_digest
from rayface.training.recovery.resume_check import check_resumable
from rayface.training.run_directory import RunDirectory
from rayface.training.run_results import TEACHER
from rayface.training.schedules import RunLength, build_schedule
from rayface.training.validate import ValidRun


def check_names(config: Config) -> None:
    """Check that head, margin and schedule exist and accept their settings.

    Raises:
        ValueError: one line.
    """
    head_class(config.head.name)
    check_config_head(config)
    # Not a real optimizer: the first one of a process imports TorchDynamo, which takes 1 s of CPU time.
    optimizer = cast(Optimizer, SimpleNamespace(param_groups=[{"lr": 1.0}]))
    build_schedule(config.schedule, optimizer, RunLength(total_steps=1, steps_per_epoch=1))


def check_model(run: ValidRun) -> None:
    """Check what a run trains and, for a resume, that it fits the run directory; nothing is written.

    Raises:
        ValueError: one line.
    """
    config = run.config
    check_names(config)
    _check_backbone(config, run.resume)
    check_distillation(config)
    if directory := run.resumed:
        with directory.exclusive():
            check_teacher(directory, config)
            check_resumable(directory, config, run.sample_order)


def check_teacher(directory: RunDirectory, config: Config) -> None:
    """Refuse another teacher at the path of the one that a run was started with; an earlier version stored no digest.

    Raises:
        ValueError: one line.
    """
    before = (directory.read_data_facts() or {}).get(TEACHER)
    if before not in (None, teacher_digest(config)):
        raise ValueError(
            f"train.teacher: {config.train.teacher}: its weights differ from those that the run was started with: must "
            "not change on a resume: restore the file, or start a new run"
        )


def _check_backbone(config: Config, resume: bool) -> None:
    """Build it, without memory unless it starts from weights: what cannot be is found before workers start."""
    if config.backbone.weights is not None and not resume:
        load_start(build_config_backbone(config), config)
        return
    with shapes_only():
        build_config_backbone(config)
