"""FastFace against rates counted by hand and the published plateaus."""

import math
from inspect import Parameter, signature

import numpy as np
import pytest

from rayface.config import ScheduleConfig
from rayface.training.schedules import FastFace
from tests.training.schedules.schedule_runs import LR, build, fastface, noisy, rates, sgd


def test_fastface_below_threshold_waits_for_tolerance_and_acts_next_step():
    # tolerance: 3 steps. E exists from step 1 on; steps 1, 2, 3 count, step 4 acts, step 5 is done with the new rate.
    assert fastface(30, [1.0] * 14, tolerance=0.1) == [1] * 5 + [1 / 2] * 4 + [1 / 4] * 4 + [1 / 8]


def test_fastface_when_the_loss_falls_counts_anew():
    losses = [9, 9, 9, 9, 8, 8, 8, 8, 8, 8]  # at step 4 the loss falls by 1, when three flat steps were counted
    assert fastface(30, losses, tolerance=0.1) == [1] * 9 + [1 / 2]


def test_fastface_after_the_last_decay_keeps_the_rate():
    assert fastface(30, [1.0] * 60, tolerance=0.1, max_decays=3)[-40:] == [1 / 8] * 40
    assert fastface(30, [1.0] * 10, tolerance=0.1, max_decays=0) == [1] * 10


def test_fastface_resumed_at_any_step_has_the_decays_that_are_left():
    given = {"alpha": 1.0, "beta": 1.0, "threshold": 0.5, "tolerance": 0.1, "max_decays": 2}
    whole = fastface(30, [1.0] * 20, **given)
    for stop in range(1, 20):
        first = FastFace(optimizer := sgd(), total_steps=30, **given)
        rates(first, optimizer, [1.0] * stop)
        second = FastFace(optimizer := sgd(), total_steps=30, **given)
        second.load_state_dict(first.state_dict())
        assert [rate / LR for rate in rates(second, optimizer, [1.0] * (20 - stop))] == whole[stop:]


def test_fastface_after_a_row_of_plateaus_restarts():
    # Two steps a plateau: two decays, the third plateau restarts to no more than the first rate, and anew.
    row = [1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 4]
    assert fastface(10, [1.0] * 19, tolerance=0.1, restart_after=3) == [1, *row, *row, *row]
    half = [1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8]
    assert fastface(10, [1.0] * 13, tolerance=0.1, restart_after=3, restart_factor=2.0)[7:] == half


def test_fastface_when_the_loss_recovers_ends_the_row_of_plateaus():
    losses = [9.0] * 6 + [8.0] * 6  # E is back at the threshold at step 6, after two plateaus
    expected = [1, 1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 16]
    assert fastface(10, losses, tolerance=0.1, restart_after=3) == expected
    assert fastface(10, [9.0] * 12, tolerance=0.1, restart_after=3)[7:] == [1, 1, 1 / 2, 1 / 2, 1 / 4]


def test_fastface_restart_never_exceeds_the_first_rate():
    assert fastface(10, [1.0] * 20, tolerance=0.1, restart_after=1, restart_factor=4.0) == [1] * 20
    found = fastface(10, [1.0] * 40, tolerance=0.1, restart_after=2, restart_factor=4.0)
    assert (max(found), min(found)) == (1, 1 / 2)


def test_fastface_at_exactly_the_threshold_is_no_plateau():
    assert fastface(10, [20 - k / 2 for k in range(20)], tolerance=0.1, threshold=0.5) == [1] * 20


def test_fastface_after_a_restart_has_all_decays_again():
    found = fastface(10, [1.0] * 40, tolerance=0.1, max_decays=2, restart_after=3)
    assert found[-8:] == fastface(10, [1.0] * 40, tolerance=0.1, restart_after=3)[-8:]


def test_haar_window_with_restarts_follows_the_rows_of_plateaus():
    m = 4
    losses = [float(20 - k) for k in range(10)] + [10.0] * 40
    found = fastface(50, losses, detector="haar_window", window=m, tolerance=0.04, threshold=0.06, restart_after=4)
    factors = [factor for k, factor in enumerate(found) if k == 0 or factor != found[k - 1]]
    assert factors[:6] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 2, 1 / 4]  # the fourth plateau in a row: times four
    first = found.index(1 / 2)
    # The loss is flat from step 10 on; 2 m - 2 steps later no falling loss is left in the window.
    assert first == 10 + (2 * m - 2) + 3
    assert found[first : first + 9] == [1 / 2] * 3 + [1 / 4] * 3 + [1 / 8] * 3


def haar_window(total_steps: int, slopes: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """(step, factor) of every change of the rate, with the published logs' settings; `slopes`: (steps, loss a step)."""
    losses = 1000 - np.cumsum(np.concatenate([np.full(steps, slope) for steps, slope in slopes]))
    options = {"detector": "haar_window", "window": 4000, "tolerance": 8000.5 / total_steps, "restart_after": 4}
    factors = fastface(total_steps, losses, threshold=None, max_decays=100, **options)
    return [(k, factor) for k, factor in enumerate(factors) if k and factor != factors[k - 1]]


@pytest.mark.parametrize(("slope", "flat"), [(5.9e-5, True), (6.1e-5, False)])
def test_haar_window_at_a_steady_slope_is_flat_below_a_quarter_of_the_window_times_it(slope, flat):
    # .06 = m g / 4 at g = 6e-5. The value exists from step 2 m - 1 on.
    changes = haar_window(30_000, [(30_000, slope)])
    assert changes == ([(2 * 4000 - 2 + 8001 * k, 0.5**k) for k in (1, 2)] if flat else [])


class Responses:
    """A detector whose values are given."""

    loss_mean = None

    def __init__(self, values: np.ndarray) -> None:
        self._values = iter(values)
        self.value: float | None = None

    def update(self, loss: float) -> None:
        self.value = float(next(self._values))


def test_fastface_with_the_published_plateaus_changes_the_rate_at_the_published_steps():
    # Four plateaus of their own, then two rows of four of which the last one multiplies the rate by four.
    published = [54280, 72870, 94820, 113110, 135870, 143870, 151870, 159870, 175830, 183830, 191830, 199830]
    values = np.ones(200_000)
    for begins, ends in [*zip(published[:4], published[:4], strict=True), (135870, 159870), (175830, 199830)]:
        values[begins - 8000 : ends + 5] = 0.0
    schedule = FastFace(
        optimizer := sgd(), total_steps=200_000, tolerance=0.04, detector="haar_window", restart_after=4, max_decays=20
    )
    schedule.detector = Responses(values)
    factors = [rate / LR for rate in rates(schedule, optimizer, np.ones(200_000))]
    changes = [k for k in range(1, len(factors)) if factors[k] != factors[k - 1]]
    assert changes == pytest.approx(published, abs=10)
    assert [factors[k] for k in changes] == [2.0**-k for k in (1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 6)]


def test_fastface_with_a_loss_of_nan_leaves_it_out():
    losses = [float(loss) for loss in noisy(60)]
    options = {"tolerance": 0.05, "alpha": 0.3, "beta": 0.3}
    whole = fastface(60, losses, **options)
    for bad in (math.nan, math.inf):
        found = fastface(60, [*losses[:30], bad, *losses[30:]], **options)
        assert found[:30] + found[31:] == whole


def test_lambda_total_with_another_number_of_steps_decays_at_the_same_shares():
    for total in (100, 10_000):
        schedule = FastFace(sgd(), total_steps=total, lambda_total=10.0, alpha_total=50.0)
        assert schedule.threshold == pytest.approx(10.0 / total)
        assert schedule.detector.alpha == schedule.detector.beta == pytest.approx(50 / total)
    assert FastFace(sgd(), total_steps=10, lambda_total=1.0).detector.alpha == 1.0
    # Twice the steps for the same curve, without noise: the rate falls at the same shares of the training.
    decays = {}
    for total in (2000, 4000):
        optimizer = sgd()
        schedule = FastFace(optimizer, total_steps=total, lambda_total=3.0, alpha_total=100.0)
        used = rates(schedule, optimizer, 10 * np.exp(-np.arange(total) / total * 6))
        decays[total] = [k / total for k in range(1, total) if used[k] != used[k - 1]]
    assert len(decays[2000]) > 3
    assert decays[4000] == pytest.approx(decays[2000], abs=2e-3)


def test_fastface_without_threshold_takes_that_of_its_detector():
    for steps in (1, 10):
        assert FastFace(sgd(), total_steps=steps).threshold == 5e-5
    assert FastFace(sgd(), total_steps=10, detector="haar_window").threshold == 0.06


def test_fastface_without_arguments_has_the_settings_of_a_config_without_them():
    defaults = {
        name: own.default for name, own in signature(FastFace).parameters.items() if own.default is not Parameter.empty
    }
    assert len(defaults) == 12
    assert defaults == {name: getattr(ScheduleConfig(), name) for name in defaults}


def test_fastface_metrics_after_two_steps_give_detector_and_mean_loss():
    schedule = FastFace(sgd(), total_steps=10, alpha=0.5, beta=0.5, threshold=0.1)
    assert schedule.metrics() == {"threshold": 0.1}
    schedule.step(4.0)
    schedule.step(2.0)
    assert schedule.metrics() == {"threshold": 0.1, "detector": 1.0, "loss_mean": 3.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "haar"}, r"schedule.detector: 'haar': must be"),
        ({"detector": "haar_window", "window": 3}, r"schedule.window: 3: must be even"),
        ({"window": 0}, r"schedule.window: 0: must be even and above 0"),
        ({"total_steps": 0}, r"^total_steps: 0: must be at least 1"),
        ({"decay": 1.0}, r"^schedule.decay: 1.0: must be above 1"),
    ],
)
def test_fastface_with_a_value_out_of_range_names_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        FastFace(sgd(), **{"total_steps": 10, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.1, "beta": 0.3, "threshold": 0.02, "decay": 3.0, "max_decays": 4, "restart_factor": 2.0},
        {"detector": "haar_window", "window": 12, "threshold": 0.03, "decay": 1.5},
        {"lambda_total": 20.0, "alpha_total": 40.0},
    ],
)
def test_fastface_of_a_config_has_each_of_its_settings(options):
    options = {"tolerance": 0.005, "restart_after": 3 if "alpha" in options else 2, **options}
    losses = [float(loss) for loss in noisy(400)]
    found = rates(build("fastface", optimizer := sgd(), 400, **options), optimizer, losses)

    def by_arguments(given):
        return rates(FastFace(optimizer := sgd(), total_steps=400, **given), optimizer, losses)

    assert found == by_arguments(options)
    for name in options:
        assert found != by_arguments({key: value for key, value in options.items() if key != name}), name
