"""The plateau schedule against rates counted by hand."""

import math

import pytest

from tests.training.schedules.schedule_runs import build, rates, sgd


def test_plateau_without_progress_lowers_the_rate_until_decays_are_used_up():
    optimizer = sgd()
    options = {"alpha": 1.0, "tolerance": 0.1, "decay": 10.0, "max_decays": 2}  # tolerance: 3 steps of 30
    schedule = build("plateau", optimizer, 30, 10, **options)
    # Its best at step 2, hardly better at 3; four steps without progress lower the rate for step 7 and then for 11.
    used = rates(schedule, optimizer, [9.0, 8.0, 7.0, 6.9999, *[7.5] * 20])
    assert used == pytest.approx([0.2] * 7 + [0.02] * 4 + [0.002] * 13)


def test_plateau_of_a_negative_loss_that_stays_lowers_the_rate():
    options = {"alpha": 1.0, "tolerance": 0.1, "decay": 10.0, "max_decays": 1}
    used = rates(build("plateau", optimizer := sgd(), 30, 10, **options), optimizer, [-1.0, *[-1.0005] * 9])
    assert used == pytest.approx([0.2] * 5 + [0.02] * 5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_plateau_with_a_loss_that_is_not_finite_leaves_it_out(bad):
    options = {"alpha": 0.5, "tolerance": 0.1, "decay": 10.0, "max_decays": 2}
    losses = [9.0, 8.0, 7.0, *[6.5] * 20]
    whole = rates(build("plateau", optimizer := sgd(), 30, 10, **options), optimizer, losses)
    found = rates(build("plateau", optimizer := sgd(), 30, 10, **options), optimizer, [*losses[:5], bad, *losses[5:]])
    assert found[:5] + found[6:] == whole
    assert len(set(whole)) == 3


def test_plateau_metrics_give_the_smoothed_loss_once_there_is_one():
    schedule = build("plateau", sgd(), 30, 10, alpha=0.25, tolerance=0.1, decay=10.0, max_decays=2)
    assert schedule.metrics() == {}
    schedule.step(4.0)
    schedule.step(2.0)
    assert schedule.metrics() == {"loss_mean": 3.5}


def test_plateau_that_improves_by_more_than_a_thousandth_keeps_the_rate():
    options = {"alpha": 1.0, "tolerance": 0.01, "decay": 10.0, "max_decays": 2}
    for ratio, last in ((0.9985, 0.2), (0.9995, 0.002)):
        used = rates(build("plateau", optimizer := sgd(), 30, 10, **options), optimizer, [ratio**k for k in range(9)])
        assert used[-1] == pytest.approx(last)


def test_plateau_resumed_at_any_step_of_a_plateau_counts_on():
    options = {"alpha": 1.0, "tolerance": 0.1, "decay": 10.0, "max_decays": 2}
    losses = [9.0] * 12
    whole = rates(build("plateau", optimizer := sgd(), 30, 10, **options), optimizer, losses)
    for stop in range(1, 12):
        first = build("plateau", optimizer := sgd(), 30, 10, **options)
        rates(first, optimizer, losses[:stop])
        second = build("plateau", optimizer := sgd(), 30, 10, **options)
        second.load_state_dict(first.state_dict())
        assert rates(second, optimizer, losses[stop:]) == whole[stop:]
