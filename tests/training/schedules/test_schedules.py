"""Schedules against their formulas."""

import json
import math

import numpy as np
import pytest
import torch

from rayface import config as configs
from rayface.config import ScheduleConfig
from rayface.training.schedules import SCHEDULES, FastFace, RunLength, Schedule, build_schedule

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


def test_polynomial_with_warmup():
    rates = run("polynomial", 50, warmup_epochs=1, power=2.0)
    assert rates[:10] == pytest.approx([0.2 * (k + 1) / 10 for k in range(10)])
    assert rates[10:] == pytest.approx([0.2 * ((50 - k) / 40) ** 2 for k in range(10, 50)])


def test_polynomial_ends_at_zero_and_stays():
    assert run("polynomial", 20)[0] == pytest.approx(0.2)
    assert run("polynomial", 20)[-1] == pytest.approx(0.2 / 20)


def test_multi_step():
    rates = run("multi_step", 40, milestones=(1, 2.5), gamma=0.1)
    assert rates == pytest.approx([0.2] * 10 + [0.02] * 15 + [0.002] * 15)


def test_cosine():
    rates = run("cosine", 50, warmup_epochs=1)
    assert rates[:10] == pytest.approx([0.2 * (k + 1) / 10 for k in range(10)])
    assert rates[10:] == pytest.approx([0.1 * (1 + math.cos(math.pi * (k - 10) / 40)) for k in range(10, 50)])


def test_constant():
    assert run("constant", 20, warmup_epochs=0.5) == pytest.approx([0.04 * (k + 1) for k in range(5)] + [0.2] * 15)


def test_plateau():
    optimizer = sgd()
    options = {"alpha": 1.0, "tolerance": 0.1, "decay": 10.0, "max_decays": 2}  # tolerance: 3 steps of 30
    schedule = build("plateau", optimizer, 30, 10, **options)
    # Its best at step 2, hardly better at 3; four steps without progress lower the rate for step 7 and then for 11.
    used = rates(schedule, optimizer, [9.0, 8.0, 7.0, 6.9999, *[7.5] * 20])
    assert used == pytest.approx([0.2] * 7 + [0.02] * 4 + [0.002] * 13)


def test_fastface_waits_for_the_tolerance_and_acts_on_the_next_step():
    # tolerance: 3 steps. E exists from step 1 on; steps 1, 2, 3 count, step 4 acts, step 5 is done with the new rate.
    assert fastface(30, [1.0] * 14, tolerance=0.1) == [1] * 5 + [1 / 2] * 4 + [1 / 4] * 4 + [1 / 8]


def test_fastface_begins_to_count_anew_when_the_loss_falls():
    losses = [9, 9, 9, 9, 8, 8, 8, 8, 8, 8]  # at step 4 the loss falls by 1, when three flat steps were counted
    assert fastface(30, losses, tolerance=0.1) == [1] * 9 + [1 / 2]


def test_fastface_keeps_the_rate_when_the_decays_are_used_up():
    assert fastface(30, [1.0] * 60, tolerance=0.1, max_decays=3)[-40:] == [1 / 8] * 40
    assert fastface(30, [1.0] * 10, tolerance=0.1, max_decays=0) == [1] * 10


def test_fastface_restarts_after_a_row_of_plateaus():
    # Two steps a plateau: two decays, the third plateau restarts to no more than the first rate, and anew.
    row = [1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 4]
    assert fastface(10, [1.0] * 19, tolerance=0.1, restart_after=3) == [1, *row, *row, *row]
    half = [1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8]
    assert fastface(10, [1.0] * 13, tolerance=0.1, restart_after=3, restart_factor=2.0)[7:] == half


def test_fastface_recovery_ends_a_row_of_plateaus():
    losses = [9.0] * 6 + [8.0] * 6  # E is back at the threshold at step 6, after two plateaus
    expected = [1, 1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 16]
    assert fastface(10, losses, tolerance=0.1, restart_after=3) == expected
    assert fastface(10, [9.0] * 12, tolerance=0.1, restart_after=3)[7:] == [1, 1, 1 / 2, 1 / 2, 1 / 4]


def test_a_restart_gives_the_decays_back():
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


def test_a_loss_that_is_no_number_is_left_out():
    losses = [float(loss) for loss in noisy(60)]
    options = {"tolerance": 0.05, "alpha": 0.3, "beta": 0.3}
    whole = fastface(60, losses, **options)
    for bad in (math.nan, math.inf):
        found = fastface(60, [*losses[:30], bad, *losses[30:]], **options)
        assert found[:30] + found[31:] == whole


def test_lambda_total_carries_a_setting_over_to_other_numbers_of_steps():
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


def test_the_usual_threshold_of_a_detector():
    assert FastFace(sgd(), total_steps=10).threshold == 5e-5
    assert FastFace(sgd(), total_steps=10, detector="haar_window").threshold == 0.06


def test_metrics_for_the_journal():
    schedule = FastFace(sgd(), total_steps=10, alpha=0.5, beta=0.5, threshold=0.1)
    assert schedule.metrics() == {"threshold": 0.1}
    schedule.step(4.0)
    schedule.step(2.0)
    assert schedule.metrics() == {"threshold": 0.1, "detector": 1.0, "loss_mean": 3.0}


STATES = [
    ("polynomial", {"warmup_epochs": 1}),
    ("multi_step", {"warmup_epochs": 1, "milestones": (2,)}),
    ("cosine", {"warmup_epochs": 1}),
    ("constant", {"warmup_epochs": 1}),
    ("plateau", {"alpha": 0.3, "tolerance": 0.01, "decay": 2.0, "max_decays": 8}),
    ("fastface", {"lambda_total": 20.0, "alpha_total": 50.0, "tolerance": 0.02, "restart_after": 2}),
    ("fastface", {"detector": "haar_window", "window": 20, "tolerance": 0.02, "restart_after": 2}),
]


@pytest.mark.parametrize(("name", "options"), STATES)
def test_a_schedule_resumed_at_any_step_goes_on_as_if_it_had_not_stopped(name, options):
    losses = [float(loss) for loss in noisy(400)]
    optimizer = sgd()
    whole = rates(build(name, optimizer, 400, **options), optimizer, losses)
    assert name == "constant" or len(set(whole)) > 1
    for stop in (1, 13, 150, 333):
        schedule = build(name, optimizer := sgd(), 400, **options)
        before = rates(schedule, optimizer, losses[:stop])
        state = json.loads(json.dumps(schedule.state_dict()))  # as a checkpoint keeps it
        resumed = build(name, optimizer := sgd(), 400, **options)
        optimizer.load_state_dict(sgd().state_dict())  # comes first when a run is resumed, and makes new groups
        resumed.load_state_dict(state)
        assert before + rates(resumed, optimizer, losses[stop:]) == whole


@pytest.mark.parametrize(("name", "options"), STATES)
def test_a_step_that_was_left_out_counts_for_the_step_and_not_for_the_loss(name, options):
    losses = [float(loss) for loss in noisy(120)]
    whole = rates(build(name, optimizer := sgd(), 120, **options), optimizer, losses)
    gap = [*losses[:50], math.nan, *losses[50:]]
    got = rates(build(name, optimizer := sgd(), 120, **options), optimizer, gap)
    follows_the_loss = name in ("plateau", "fastface")
    assert (got[:50] + got[51:] if follows_the_loss else got[:120]) == whole


def test_a_checkpoint_of_another_schedule_is_refused():
    ours = build("fastface", sgd(), 10)
    for name, options in STATES:
        if name != "fastface" or options.get("detector"):
            other = build(name, sgd(), 10, **options)
            with pytest.raises(ValueError, match="another kind of schedule"):
                ours.load_state_dict(other.state_dict())
    small, large = (FastFace(sgd(), total_steps=10, detector="haar_window", window=m) for m in (4, 8))
    with pytest.raises(ValueError, match=r"schedule\.window: 8: the run was started with 4"):
        large.load_state_dict(small.state_dict())


def test_every_schedule_is_built_from_the_config():
    for name in SCHEDULES:
        config = configs.with_overrides(configs.Config(), {"schedule.name": name, "schedule.milestones": [2]})
        schedule = build_schedule(config.schedule, sgd(), RunLength(total_steps=10, steps_per_epoch=5))
        schedule.step(1.0)
        assert schedule.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "cosin"}, r"schedule.name: 'cosin': must be one of polynomial"),
        ({"name": "multi_step"}, r"schedule.milestones: \(\): must list"),
        ({"name": "fastface", "warmup_epochs": 2.0}, r"schedule.warmup_epochs: 2: must be 0 with fastface"),
        ({"name": "fastface", "detector": "haar_window", "lambda_total": 1.0}, r"schedule.lambda_total: 1: is for"),
        ({"name": "fastface", "threshold": 0.1, "lambda_total": 1.0}, r"in place of threshold"),
    ],
)
def test_build_schedule_with_excluding_settings_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes, optimizer=sgd(), total=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "haar"}, r"schedule.detector: 'haar': must be"),
        ({"detector": "haar_window", "window": 3}, r"schedule.window: 3: must be even"),
    ],
)
def test_fastface_with_a_detector_that_cannot_be_names_the_key(options, message):
    with pytest.raises(ValueError, match=message):
        FastFace(sgd(), total_steps=10, **options)


def test_schedule_of_a_plugin_is_built_by_its_name(monkeypatch):
    monkeypatch.setitem(
        SCHEDULES, "mine", lambda config, optimizer, length: SCHEDULES["constant"](config, optimizer, length)
    )
    assert run("mine", 4) == [LR] * 4
