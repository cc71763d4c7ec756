"""The detectors of FastFace against slow references."""

import numpy as np
import pytest

from rayface.training.schedules.detectors import EmaDetector, HaarWindowDetector
from tests.training.schedules.schedule_runs import noisy


@pytest.mark.parametrize(("a", "b"), [(0.1, 0.1), (0.02, 0.3), (1.0, 0.5), (1e-3, 1e-3)])
def test_ema_detector_equals_the_published_recurrence_and_the_moving_mean_of_a_moving_mean(a, b):
    losses = noisy(3000)
    # In long doubles: with rates near 0 the recurrence loses digits.
    x = losses.astype(np.longdouble)
    p, q = np.longdouble(a), np.longdouble(b)
    e = [np.longdouble(0), p * (x[0] - x[1])]
    inner, outer = x[0] - x[1], p * (x[0] - x[1])
    mean = x[0]
    detector = EmaDetector(a, b)
    detector.update(float(losses[0]))
    assert detector.value is None
    for t in range(1, len(losses)):
        detector.update(float(losses[t]))
        if t > 1:
            e.append((2 - p - q) * e[-1] - (1 - p) * (1 - q) * e[-2] + p * q * (x[t - 1] - x[t]))
            inner = (1 - q) * inner + q * (x[t - 1] - x[t])
            outer = (1 - p) * outer + p * inner
        mean = (1 - p) * mean + p * x[t]
        assert abs(detector.value - e[t]) < 1e-12
        assert abs(outer - e[t]) < 1e-12
        assert abs(detector.loss_mean - mean) < 1e-12


def test_ema_detector_begins_as_published():
    detector = EmaDetector(0.1, 0.2)
    for loss in (5.0, 4.0, 3.5):
        detector.update(loss)
    first = 0.1 * (5.0 - 4.0)
    assert detector.value == pytest.approx((2 - 0.3) * first + 0.1 * 0.2 * (4.0 - 3.5), abs=1e-15)


@pytest.mark.parametrize("make", [lambda: EmaDetector(0.1, 0.2), lambda: HaarWindowDetector(4)])
def test_state_of_a_detector_is_not_changed_by_later_losses(make):
    losses = [float(loss) for loss in noisy(60)]
    first, second = make(), make()
    for loss in losses[:20]:
        first.update(loss)
    state = first.state_dict()
    second.load_state_dict(state)
    for loss in losses[20:]:
        first.update(loss)
    third = make()
    third.load_state_dict(state)
    for loss in losses[20:]:
        second.update(loss)
    for loss in losses[20:]:
        third.update(loss)
    assert first.value == second.value == third.value


@pytest.mark.parametrize("m", [2, 10, 64])
def test_haar_window_detector_equals_the_slow_one(m):
    losses = noisy(500)
    detector = HaarWindowDetector(m)
    for t, loss in enumerate(losses):
        detector.update(loss)
        means = [losses[k - m + 1 : k + 1].mean() for k in range(m - 1, t + 1)][-m:]
        if len(means) < m:
            assert detector.value is None
        else:
            slow = (np.sum(means[: m // 2]) - np.sum(means[m // 2 :])) / m
            assert detector.value == pytest.approx(slow, abs=1e-12)
            assert detector.loss_mean == pytest.approx(means[-1], abs=1e-12)
