"""FastFace (arXiv 2404.11118): lower the learning rate when the loss stops falling."""

import math

from torch.optim import Optimizer

from rayface.config import ScheduleConfig
from rayface.training.schedules.base import LearningRate, RunLength, StateDict, check_same_kind, refuse_warmup
from rayface.training.schedules.detectors import EmaDetector, HaarWindowDetector

_THRESHOLDS = {"ema": 5e-5, "haar_window": 0.06}
# Arguments of FastFace that are keys of the config group `schedule`.
_OPTIONS = (
    "detector",
    "alpha",
    "beta",
    "threshold",
    "tolerance",
    "decay",
    "max_decays",
    "window",
    "restart_after",
    "restart_factor",
    "lambda_total",
    "alpha_total",
)


class FastFace:
    """Lower the rate when the loss stops falling (FastFace, arXiv 2404.11118).

    E is a detector's measure of how fast the loss falls. When E stays below `threshold` for more than `tolerance` T
    consecutive steps (a plateau), the rate is divided by `decay`, at most `max_decays` times.

    Args:
        optimizer: the `lr` of its groups is set, as a factor of the initial value.
        total_steps: T, at least 1.
        detector: ema (released code; unit of E: loss per step) or haar_window (published logs; unit of E: loss).
        alpha, beta: rates of the ema detector.
        threshold: lambda; None: 5e-5 for ema, .06 for haar_window.
        tolerance: tau, a share of T.
        decay: delta, above 1.
        max_decays: maximum number of decays since the start or the last warm restart; after that, the rate stays.
        window: m of haar_window, steps.
        restart_after: number of consecutive plateaus, without E back at the threshold between them, after which the
            rate is multiplied by `restart_factor` instead (warm restart; the published logs: 4); None: never.
        restart_factor: factor of a warm restart; the rate never exceeds its initial value.
        lambda_total: for ema, replaces threshold, alpha and beta, so that a setting carries over to other numbers of
            steps: threshold = lambda_total / T (released: 10).
        alpha_total: with lambda_total: alpha = beta = alpha_total / T, at most 1 (released: 200). The noise of E
            is .5 s alpha ** 1.5 for losses of standard deviation s; short runs need a smaller one.

    Raises:
        ValueError: a value out of its range, or settings that exclude each other.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        detector: str = "ema",
        alpha: float = 1e-3,
        beta: float = 1e-3,
        threshold: float | None = None,
        tolerance: float = 0.05,
        decay: float = 2.0,
        max_decays: int = 8,
        window: int = 4000,
        restart_after: int | None = None,
        restart_factor: float = 4.0,
        lambda_total: float | None = None,
        alpha_total: float = 200.0,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"total_steps: {total_steps}: must be at least 1, the steps of the run")
        if detector not in _THRESHOLDS:
            raise ValueError(f"schedule.detector: {detector!r}: must be ema or haar_window")
        if window < 2 or window % 2:
            raise ValueError(f"schedule.window: {window}: must be even and above 0, because it is cut in halves")
        if decay <= 1:
            raise ValueError(f"schedule.decay: {decay}: must be above 1, usually 2")
        if lambda_total is not None and (detector != "ema" or threshold is not None):
            raise ValueError(
                f"schedule.lambda_total: {lambda_total:g}: requires detector=ema and replaces threshold: unset one"
            )
        self.threshold = _THRESHOLDS[detector] if threshold is None else threshold
        if lambda_total is not None:
            self.threshold = lambda_total / total_steps
            alpha = beta = min(1.0, alpha_total / total_steps)
        self.detector = EmaDetector(alpha, beta) if detector == "ema" else HaarWindowDetector(window)
        self._tolerance = int(total_steps * tolerance)
        self._decay, self._max_decays = decay, max_decays
        self._restart_after, self._restart_factor = restart_after, restart_factor
        self._rate = LearningRate(optimizer)
        self._below = 0  # consecutive steps below the threshold
        self._row = 0  # consecutive plateaus
        self._decays = 0

    def step(self, loss: float) -> None:
        """Update with the loss of the finished step; the rate changes from the next step on."""
        if not math.isfinite(loss):
            return  # a non-finite loss would persist in the means
        self.detector.update(loss)
        value = self.detector.value
        if value is None:
            return
        if value >= self.threshold:
            self._below = self._row = 0
        elif self._below < self._tolerance:
            self._below += 1
        else:
            self._below = 0
            self._row += 1
            self._change()

    def metrics(self) -> dict[str, float]:
        """Return the threshold and, once they are set, E (`detector`) and the smoothed loss."""
        known = {"detector": self.detector.value, "loss_mean": self.detector.loss_mean}
        return {"threshold": self.threshold, **{key: value for key, value in known.items() if value is not None}}

    def state_dict(self) -> StateDict:
        counts = {"below": self._below, "row": self._row, "decays": self._decays}
        return {**counts, "factor": self._rate.factor, "detector": self.detector.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        check_same_kind(state, self.state_dict())
        check_same_kind(state["detector"], self.detector.state_dict())
        self._below, self._row, self._decays = state["below"], state["row"], state["decays"]
        self.detector.load_state_dict(state["detector"])
        self._rate.set(state["factor"])

    def _change(self) -> None:
        if self._restart_after is not None and self._row >= self._restart_after:
            self._row = self._decays = 0
            self._rate.set(min(1.0, self._rate.factor * self._restart_factor))
        elif self._decays < self._max_decays:
            self._decays += 1
            self._rate.set(self._rate.factor / self._decay)


def build_fastface(config: ScheduleConfig, optimizer: Optimizer, length: RunLength) -> FastFace:
    """Return the schedule of a config.

    Raises:
        ValueError: a warm-up, or settings that exclude each other.
    """
    refuse_warmup(config)
    return FastFace(optimizer, total_steps=length.total_steps, **{key: getattr(config, key) for key in _OPTIONS})
