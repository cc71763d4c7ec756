"""Learning-rate schedules: one interface, `step(loss)` once after every optimizer step."""

from collections.abc import Callable

from torch.optim import Optimizer

from rayface.config import ScheduleConfig
from rayface.plugins import ensure_loaded
from rayface.training.schedules.base import RunLength, Schedule
from rayface.training.schedules.by_step import build_constant, build_cosine, build_multi_step, build_polynomial
from rayface.training.schedules.fastface import FastFace, build_fastface
from rayface.training.schedules.plateau import Plateau, build_plateau

__all__ = ["SCHEDULES", "FastFace", "Plateau", "RunLength", "Schedule", "build_schedule"]

SCHEDULES: dict[str, Callable[[ScheduleConfig, Optimizer, RunLength], Schedule]] = {
    "polynomial": build_polynomial,
    "multi_step": build_multi_step,
    "cosine": build_cosine,
    "plateau": build_plateau,
    "fastface": build_fastface,
    "constant": build_constant,
}


def build_schedule(config: ScheduleConfig, optimizer: Optimizer, length: RunLength) -> Schedule:
    """Return the schedule that schedule.name names in SCHEDULES.

    Raises:
        ValueError: an unknown name, or settings that exclude each other.
    """
    ensure_loaded()
    if config.name not in SCHEDULES:
        raise ValueError(
            f"schedule.name: {config.name!r}: must be one of {', '.join(SCHEDULES)}, or registered by a plugin"
        )
    return SCHEDULES[config.name](config, optimizer, length)
