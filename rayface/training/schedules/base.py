"""Interface of learning-rate schedules."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch.optim import Optimizer

from rayface.config import ScheduleConfig

StateDict: TypeAlias = dict[str, Any]
"""State in the form of PyTorch's schedulers; the values are JSON."""


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """Length of a run; a config gives times in epochs."""

    total_steps: int
    steps_per_epoch: int

    def steps(self, epochs: float) -> int:
        """Return the number of steps of a number of epochs."""
        return round(epochs * self.steps_per_epoch)


class Schedule(Protocol):
    """Sets the learning rate of the next step."""

    def step(self, loss: float) -> None:
        """Advance to the next step.

        Args:
            loss: mean over the global batch, the same on all ranks; NaN if the step was skipped. Schedules by step
                count a skipped step, schedules by loss ignore it.
        """

    def metrics(self) -> dict[str, float]:
        """Return the values that the schedule depends on, for the journal."""

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


class LearningRate:
    """Learning rates of an optimizer's parameter groups, as a factor of their initial values."""

    def __init__(self, optimizer: Optimizer) -> None:
        # Keep the optimizer, not its groups: loading an optimizer's state replaces them.
        self._optimizer = optimizer
        self._first = [group["lr"] for group in optimizer.param_groups]
        self.factor = 1.0

    def set(self, factor: float) -> None:
        self.factor = factor
        for group, first in zip(self._optimizer.param_groups, self._first, strict=True):
            group["lr"] = first * factor


def check_same_kind(saved: StateDict, own: StateDict) -> None:
    """Raise ValueError for the state of another kind of schedule."""
    if saved.keys() != own.keys():
        raise ValueError(
            "schedule.name: the run was started with another kind of schedule: must not change on a resume"
        )


def refuse_warmup(config: ScheduleConfig) -> None:
    """Raise ValueError for a warm-up with a schedule that follows the loss."""
    if config.warmup_epochs:
        raise ValueError(
            f"schedule.warmup_epochs: {config.warmup_epochs:g}: must be 0 with {config.name}, it follows the loss"
        )
