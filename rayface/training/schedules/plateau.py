"""Lower the learning rate when the smoothed loss stops improving."""

import math

from torch.optim import Optimizer

from rayface.config import ScheduleConfig
from rayface.training.schedules.base import LearningRate, RunLength, StateDict, check_same_kind, refuse_warmup

# Smaller improvements, as a fraction of the best loss, do not count.
_PROGRESS = 1e-3


class Plateau:
    """Divide the rate when the smoothed loss has not improved for a number of steps.

    Args:
        optimizer: the `lr` of its groups is set, as a factor of the initial value.
        total_steps: T.
        alpha: rate of the moving mean of the loss.
        tolerance: steps without an improvement of 0.1 % after which the rate is divided, as a fraction of T.
        decay: divisor, above 1.
        max_decays: maximum number of divisions; after that, the rate stays.
    """

    def __init__(
        self, optimizer: Optimizer, *, total_steps: int, alpha: float, tolerance: float, decay: float, max_decays: int
    ) -> None:
        self._rate = LearningRate(optimizer)
        self._alpha, self._tolerance = alpha, int(total_steps * tolerance)
        self._decay, self._max_decays = decay, max_decays
        self._mean: float | None = None
        self._best = math.inf
        self._without = self._decays = 0

    def step(self, loss: float) -> None:
        """Update with the loss of the finished step."""
        if not math.isfinite(loss):
            return
        self._mean = loss if self._mean is None else self._mean + self._alpha * (loss - self._mean)
        if self._best == math.inf or self._mean < self._best - _PROGRESS * abs(self._best):
            self._best, self._without = self._mean, 0
        elif self._without < self._tolerance:
            self._without += 1
        elif self._decays < self._max_decays:
            self._without = 0
            self._decays += 1
            self._rate.set(self._rate.factor / self._decay)

    def metrics(self) -> dict[str, float]:
        """Return the smoothed loss."""
        return {} if self._mean is None else {"loss_mean": self._mean}

    def state_dict(self) -> StateDict:
        counts = {"mean": self._mean, "best": self._best, "without": self._without, "decays": self._decays}
        return {**counts, "factor": self._rate.factor}

    def load_state_dict(self, state: StateDict) -> None:
        check_same_kind(state, self.state_dict())
        self._mean, self._best = state["mean"], state["best"]
        self._without, self._decays = state["without"], state["decays"]
        self._rate.set(state["factor"])


def build_plateau(config: ScheduleConfig, optimizer: Optimizer, length: RunLength) -> Plateau:
    """Return the schedule of a config.

    Raises:
        ValueError: a warm-up.
    """
    refuse_warmup(config)
    return Plateau(
        optimizer,
        total_steps=length.total_steps,
        alpha=config.alpha,
        tolerance=config.tolerance,
        decay=config.decay,
        max_decays=config.max_decays,
    )
