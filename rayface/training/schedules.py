"""Learning-rate schedules: one interface, `step(loss)` once after every optimizer step."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch.optim import Optimizer

from rayface.training.detectors import EmaDetector, HaarWindowDetector

SCHEDULES = ("polynomial", "multi_step", "cosine", "plateau", "fastface", "constant")
_THRESHOLDS = {"ema": 5e-5, "haar_window": 0.06}
# Loss falls by less than this share of itself: none of it counts as progress for `Plateau`.
_PROGRESS = 1e-3


class Schedule(Protocol):
    """What sets the learning rate of the next step."""

    def step(self, loss: float) -> None:
        """Go on to the next step, given the mean loss over the global batch (the same on all ranks).

        NaN: the step was left out. What goes by the number of the step counts it, what goes by the loss does not.
        """

    def metrics(self) -> dict[str, float]:
        """What it goes by, for the journal."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class ByStep:
    """A learning rate that is a function of the step alone.

    Args:
        optimizer: its groups' `lr` are set, as a factor of what they are now.
        factor: step (from 0) to factor.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._rate = _Rate(optimizer)
        self._factor = factor
        self._step = 0
        self._rate.set(factor(0))

    def step(self, loss: float) -> None:
        """Go on to the next step; the loss of the last one has no influence here."""
        self._step += 1
        self._rate.set(self._factor(self._step))

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_same(state, self.state_dict())
        self._step = int(state["step"])
        self._rate.set(self._factor(self._step))


class FastFace:
    """Lower the rate when the loss has stopped to fall (FastFace, arXiv 2404.11118).

    When E, a detector's measure of how fast the loss falls, has been below `threshold` for more than
    `tolerance` of the steps in a row, the rate is divided by `decay`, at most `max_decays` times.

    Args:
        optimizer: its groups' `lr` are set, as a factor of what they are now.
        total_steps: T.
        detector: ema (of the released code: E is loss a step) or haar_window (of the published logs: E is loss).
        alpha, beta: rates of the ema detector.
        threshold: lambda; None: 5e-5 for ema, .06 for haar_window.
        tolerance: tau, a share of T.
        decay: delta, above 1.
        max_decays: since the start or the last restart; then the rate stays.
        window: m of haar_window, steps.
        restart_after: so many plateaus in a row, E never back at the threshold between them, and the rate is
            multiplied by `restart_factor` instead (warm restart; the logs: 4); None: never.
        restart_factor: it never lifts the rate above the first one.
        lambda_total: for ema, in place of threshold, alpha and beta, so that a setting is carried over to other
            numbers of steps: threshold = lambda_total / T (released: 10).
        alpha_total: with lambda_total: alpha = beta = alpha_total / T, at most 1 (released: 200). The noise of E
            is .5 s alpha ** 1.5 for losses of standard deviation s; short runs need a smaller one.

    Raises:
        ValueError: settings that exclude each other.
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
        if detector not in _THRESHOLDS:
            raise ValueError(f"schedule.detector: {detector!r}: must be ema or haar_window")
        if window % 2:
            raise ValueError(f"schedule.window: {window}: must be even, it is cut in halves")
        if lambda_total is not None and (detector != "ema" or threshold is not None):
            raise ValueError(
                f"schedule.lambda_total: {lambda_total:g}: is for detector=ema, in place of threshold: unset one"
            )
        self.threshold = _THRESHOLDS[detector] if threshold is None else threshold
        if lambda_total is not None:
            self.threshold = lambda_total / total_steps
            alpha = beta = min(1.0, alpha_total / total_steps)
        self.detector = EmaDetector(alpha, beta) if detector == "ema" else HaarWindowDetector(window)
        self._tolerance = int(total_steps * tolerance)
        self._decay, self._max_decays = decay, max_decays
        self._restart_after, self._restart_factor = restart_after, restart_factor
        self._rate = _Rate(optimizer)
        self._below = 0  # steps in a row
        self._row = 0  # plateaus in a row
        self._decays = 0

    def step(self, loss: float) -> None:
        """Take in the loss of the step that was done; what follows from it holds from the next step on."""
        if not math.isfinite(loss):
            return  # one would stay in every mean to come
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
        """E (`detector`), the threshold and the smoothed loss, as far as they exist yet."""
        known = {"detector": self.detector.value, "loss_mean": self.detector.loss_mean}
        return {"threshold": self.threshold, **{key: value for key, value in known.items() if value is not None}}

    def state_dict(self) -> dict[str, Any]:
        counts = {"below": self._below, "row": self._row, "decays": self._decays}
        return {**counts, "factor": self._rate.factor, "detector": self.detector.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_same(state, self.state_dict())
        _check_same(state["detector"], self.detector.state_dict())
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


class Plateau:
    """Divide the rate when the smoothed loss has not come below its best for a time.

    Args:
        optimizer: its groups' `lr` are set, as a factor of what they are now.
        total_steps: T.
        alpha: rate of the loss's moving mean.
        tolerance: of T: the steps without progress, by .1 % of the best, after which the rate is divided.
        decay: by this, above 1.
        max_decays: so often; then the rate stays.
    """

    def __init__(
        self, optimizer: Optimizer, *, total_steps: int, alpha: float, tolerance: float, decay: float, max_decays: int
    ) -> None:
        self._rate = _Rate(optimizer)
        self._alpha, self._tolerance = alpha, int(total_steps * tolerance)
        self._decay, self._max_decays = decay, max_decays
        self._mean: float | None = None
        self._best = math.inf
        self._without = self._decays = 0

    def step(self, loss: float) -> None:
        """Take in the loss of the step that was done."""
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
        """The smoothed loss."""
        return {} if self._mean is None else {"loss_mean": self._mean}

    def state_dict(self) -> dict[str, Any]:
        counts = {"mean": self._mean, "best": self._best, "without": self._without, "decays": self._decays}
        return {**counts, "factor": self._rate.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_same(state, self.state_dict())
        self._mean, self._best = state["mean"], state["best"]
        self._without, self._decays = state["without"], state["decays"]
        self._rate.set(state["factor"])


class _Rate:
    """The rates of an optimizer's groups as a factor of what they were first."""

    def __init__(self, optimizer: Optimizer) -> None:
        # Not the groups themselves: loading an optimizer's state makes new ones.
        self._optimizer = optimizer
        self._first = [group["lr"] for group in optimizer.param_groups]
        self.factor = 1.0

    def set(self, factor: float) -> None:
        self.factor = factor
        for group, first in zip(self._optimizer.param_groups, self._first, strict=True):
            group["lr"] = first * factor


def _check_same(saved: dict[str, Any], own: dict[str, Any]) -> None:
    if saved.keys() != own.keys():
        raise ValueError("schedule.name: the run was started with another kind of schedule: must stay for --resume")


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
    """Linear warm-up; times `gamma` from each of the `milestones` (steps) on."""
    return ByStep(optimizer, _with_warmup(lambda step: gamma ** sum(step >= m for m in milestones), warmup_steps))


def constant(optimizer: Optimizer, *, warmup_steps: int = 0) -> ByStep:
    """Linear warm-up, then always the same."""
    return ByStep(optimizer, _with_warmup(lambda step: 1.0, warmup_steps))


def _with_warmup(factor: Callable[[int], float], warmup_steps: int) -> Callable[[int], float]:
    # The first step already moves: a rate of 0 would waste a batch.
    return lambda step: (step + 1) / warmup_steps if step < warmup_steps else factor(step)


def build_schedule(
    name: str,
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    power: float = 1.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    **plateau: Any,
) -> Schedule:
    """The schedule called `name`, with its times given in epochs; `plateau`: the arguments of `FastFace`.

    Raises:
        ValueError: an unknown name, or settings that do not go together.
    """
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if name == "polynomial":
        return polynomial(optimizer, total_steps=total_steps, warmup_steps=warmup_steps, power=power)
    if name == "cosine":
        return cosine(optimizer, total_steps=total_steps, warmup_steps=warmup_steps)
    if name == "multi_step":
        if not milestones:
            raise ValueError("schedule.milestones: (): must list the epochs at which the rate is lowered: [8, 14]")
        steps = [round(epoch * steps_per_epoch) for epoch in milestones]
        return multi_step(optimizer, milestones=steps, gamma=gamma, warmup_steps=warmup_steps)
    if name == "constant":
        return constant(optimizer, warmup_steps=warmup_steps)
    if name not in SCHEDULES:
        raise ValueError(f"schedule.name: {name!r}: must be one of {', '.join(SCHEDULES)}")
    if warmup_epochs:
        raise ValueError(f"schedule.warmup_epochs: {warmup_epochs:g}: must be 0 with {name}, it follows the loss")
    if name == "fastface":
        return FastFace(optimizer, total_steps=total_steps, **plateau)
    keys = ("alpha", "tolerance", "decay", "max_decays")
    return Plateau(optimizer, total_steps=total_steps, **{key: plateau[key] for key in keys if key in plateau})
