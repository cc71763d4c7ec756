"""Schedules by step: polynomial, cosine, multi-step, constant; all with a linear warm-up."""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer

from rayface.config import ScheduleConfig
from rayface.training.schedules.base import LearningRate, RunLength, StateDict, check_same_kind


class ByStep:
    """Learning rate as a function of the step.

    Args:
        optimizer: the `lr` of its groups is set, as a factor of the initial value.
        factor: maps the step (from 0) to the factor.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._rate = LearningRate(optimizer)
        self._factor = factor
        self._step = 0
        self._rate.set(factor(0))

    def step(self, loss: float) -> None:
        """Advance to the next step; the loss is ignored."""
        self._step += 1
        self._rate.set(self._factor(self._step))

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> StateDict:
        return {"step": self._step}

    def load_state_dict(self, state: StateDict) -> None:
        check_same_kind(state, self.state_dict())
        self._step = int(state["step"])
        self._rate.set(self._factor(self._step))


def polynomial(optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, power: float = 1.0) -> ByStep:
    """Linear warm-up, then (1 - progress) ** power down to 0 at `total_steps`."""

    def factor(step: int) -> float:
        rest = max(0, total_steps - step) / max(1, total_steps - warmup_steps)
        return float(min(1.0, rest) ** power)

    return ByStep(optimizer, _with_warmup(factor, warmup_steps))


def cosine(optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0) -> ByStep:
    """Linear warm-up, then half a cosine down to 0 at `total_steps`."""

    def factor(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return ByStep(optimizer, _with_warmup(factor, warmup_steps))


def multi_step(optimizer: Optimizer, *, milestones: Sequence[int], gamma: float = 0.1, warmup_steps: int = 0) -> ByStep:
    """Linear warm-up; the rate is multiplied by `gamma` at each of the `milestones` (steps)."""
    return ByStep(optimizer, _with_warmup(lambda step: gamma ** sum(step >= m for m in milestones), warmup_steps))


def constant(optimizer: Optimizer, *, warmup_steps: int = 0) -> ByStep:
    """Linear warm-up, then the initial rate."""
    return ByStep(optimizer, _with_warmup(lambda step: 1.0, warmup_steps))


def _with_warmup(factor: Callable[[int], float], warmup_steps: int) -> Callable[[int], float]:
    # The first step has a rate above 0: a rate of 0 would waste a batch.
    return lambda step: (step + 1) / warmup_steps if step < warmup_steps else factor(step)


def build_polynomial(config: ScheduleConfig, optimizer: Optimizer, length: RunLength) -> ByStep:
    """Return the schedule of a config."""
    warmup = length.steps(config.warmup_epochs)
    return polynomial(optimizer, total_steps=length.total_steps, warmup_steps=warmup, power=config.power)


def build_cosine(config: ScheduleConfig, optimizer: Optimizer, length: RunLength) -> ByStep:
    """Return the schedule of a config."""
    return cosine(optimizer, total_steps=length.total_steps, warmup_steps=length.steps(config.warmup_epochs))


def build_multi_step(config: ScheduleConfig, optimizer: Optimizer, length: RunLength) -> ByStep:
    """Return the schedule of a config.

    Raises:
        ValueError: no milestones.
    """
    if not config.milestones:
        raise ValueError("schedule.milestones: (): must list the epochs at which the rate is lowered: [8, 14]")
    milestones, warmup = [length.steps(epoch) for epoch in config.milestones], length.steps(config.warmup_epochs)
    return multi_step(optimizer, milestones=milestones, gamma=config.gamma, warmup_steps=warmup)


def build_constant(config: ScheduleConfig, optimizer: Optimizer, length: RunLength) -> ByStep:
    """Return the schedule of a config."""
    return constant(optimizer, warmup_steps=length.steps(config.warmup_epochs))
