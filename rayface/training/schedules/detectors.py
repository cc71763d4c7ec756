"""Plateau detectors of FastFace (arXiv 2404.11118): the decrease of the loss. Plain floats, O(1) per step."""

from rayface.training.schedules.base import StateDict


class EmaDetector:
    """Decrease of the loss per step, smoothed twice: the detector of the released code.

    E_t = (2-a-b) E_{t-1} - (1-a)(1-b) E_{t-2} + a b (L_{t-1} - L_t), with E_0 = 0 and E_1 = a (L_0 - L_1). It is
    computed as a moving mean of a moving mean, which does not accumulate rounding errors.

    Args:
        alpha: a, rate of the outer mean, in (0, 1].
        beta: b, rate of the inner mean.
    """

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta
        self.loss_mean: float | None = None
        self.value: float | None = None
        self._won: float | None = None  # the inner mean
        self._last: float | None = None

    def update(self, loss: float) -> None:
        """Update with the loss of a step; `value` is E_t from the second step on."""
        if self._last is None or self.loss_mean is None:
            self._last = self.loss_mean = loss
            return
        won = self._last - loss
        self._won = won if self._won is None else self._won + self.beta * (won - self._won)
        value = self.value or 0.0
        self.value = value + self.alpha * (self._won - value)
        self._last = loss
        self.loss_mean += self.alpha * (loss - self.loss_mean)

    def state_dict(self) -> StateDict:
        return {"loss_mean": self.loss_mean, "value": self.value, "won": self._won, "last": self._last}

    def load_state_dict(self, state: StateDict) -> None:
        self.loss_mean, self.value = state["loss_mean"], state["value"]
        self._won, self._last = state["won"], state["last"]


class HaarWindowDetector:
    """Haar response of the smoothed loss: the detector of the published logs.

    With the moving means over m losses of the last m steps: (sum of the older half - sum of the newer half) / m, which
    is half the difference of the two halves' means. A loss that falls by g per step gives m g / 4.

    Args:
        window: m, number of steps, even.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.loss_mean: float | None = None
        self.value: float | None = None
        self._losses = [0.0] * window  # ring buffers, index t % window
        self._means = [0.0] * window
        self._sums = [0.0, 0.0, 0.0]  # of the losses, of the older means, of the newer means
        self._seen = [0, 0]  # losses, means

    def update(self, loss: float) -> None:
        """Update with the loss of a step; `value` is set from step 2 m - 1 on."""
        m, half = self.window, self.window // 2
        place = self._seen[0] % m
        self._sums[0] += loss - self._losses[place]
        self._losses[place] = loss
        self._seen[0] += 1
        if self._seen[0] < m:
            return
        self.loss_mean = self._sums[0] / m
        place = self._seen[1] % m
        middle = self._means[(place - half) % m]  # it moves from the newer half to the older one
        self._sums[1] += middle - self._means[place]
        self._sums[2] += self.loss_mean - middle
        self._means[place] = self.loss_mean
        self._seen[1] += 1
        if self._seen[1] >= m:
            self.value = (self._sums[1] - self._sums[2]) / m

    def state_dict(self) -> StateDict:
        return {
            "loss_mean": self.loss_mean,
            "value": self.value,
            "losses": list(self._losses),
            "means": list(self._means),
            "sums": list(self._sums),
            "seen": list(self._seen),
        }

    def load_state_dict(self, state: StateDict) -> None:
        if len(state["losses"]) != self.window:
            before = len(state["losses"])
            raise ValueError(
                f"schedule.window: {self.window}: the run was started with {before}: must not change on a resume"
            )
        self.loss_mean, self.value = state["loss_mean"], state["value"]
        self._losses, self._means = list(state["losses"]), list(state["means"])
        self._sums, self._seen = list(state["sums"]), list(state["seen"])
