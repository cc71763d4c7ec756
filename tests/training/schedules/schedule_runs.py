"""Short runs of schedules: the learning rates that a list of losses gives."""

import numpy as np
import torch

from rayface.config import ScheduleConfig
from rayface.training.schedules import FastFace, RunLength, Schedule, build_schedule

LR = 0.2


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def build(name: str, optimizer: torch.optim.Optimizer, total: int, per_epoch: int = 40, **options: object) -> Schedule:
    length = RunLength(total_steps=total, steps_per_epoch=per_epoch)
    return build_schedule(ScheduleConfig(name=name, **options), optimizer, length)


def run(name: str, steps: int, **options: object) -> list[float]:
    optimizer = sgd()
    schedule = build(name, optimizer, steps, 10, **options)
    return rates(schedule, optimizer, [1.0] * steps)


def rates(schedule, optimizer, losses) -> list[float]:
    """The rate that every step is done with."""
    used = []
    for loss in losses:
        used.append(optimizer.param_groups[0]["lr"])
        schedule.step(loss)
    return used


def fastface(total_steps: int, losses, **options) -> list[float]:
    """Rates as factors of the first one. alpha = beta = 1 makes E the loss won in the last step."""
    optimizer = sgd()
    given = {"alpha": 1.0, "beta": 1.0, "threshold": 0.5, **options}
    return [rate / LR for rate in rates(FastFace(optimizer, total_steps=total_steps, **given), optimizer, losses)]


def noisy(steps: int, seed: int = 0) -> np.ndarray:
    """A loss that falls, with noise, to a floor, and then falls again."""
    places = np.arange(steps)
    curve = 10 * np.exp(-places / 60) + 5 * (places < steps / 2) + 3
    return curve + np.random.default_rng(seed).normal(0, 0.3, steps)
