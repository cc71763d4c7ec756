"""Learning-rate schedules: one interface, `step(loss)` once after every optimizer step."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer


class ByStep:
    """A learning rate that is a function of the step alone.

    Args:
        optimizer: its groups' `lr` are set, as a factor of what they are now.
        factor: step (from 0) to factor.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer = optimizer
        self._factor = factor
        self._base = [group["lr"] for group in optimizer.param_groups]
        self._step = 0
        self._apply()

    def step(self, loss: float) -> None:
        """Go on to the next step; the loss of the last one has no influence here."""
        self._step += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = int(state["step"])
        self._apply()

    def _apply(self) -> None:
        factor = self._factor(self._step)
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor


def polynomial(optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, power: float = 1.0) -> ByStep:
    """Linear warm-up, then (1 - progress) ** power down to 0 at `total_steps`."""

    def factor(step: int) -> float:
        rest = max(0, total_steps - step) / max(1, total_steps - warmup_steps)
        return float(min(1.0, rest) ** power)

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
) -> ByStep:
    """The schedule called `name`, with its times given in epochs."""
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if name == "polynomial":
        return polynomial(optimizer, total_steps=total_steps, warmup_steps=warmup_steps, power=power)
    if name == "multi_step":
        steps = [round(epoch * steps_per_epoch) for epoch in milestones]
        return multi_step(optimizer, milestones=steps, gamma=gamma, warmup_steps=warmup_steps)
    if name == "constant":
        return constant(optimizer, warmup_steps=warmup_steps)
    raise ValueError(f"schedule.name: {name!r}: must be polynomial, multi_step or constant")
