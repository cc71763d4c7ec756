"""Schedules that are functions of the step."""

import math

import pytest

from tests.training.schedules.schedule_runs import LR, build, rates, run, sgd


def test_polynomial_with_warmup_rises_then_falls():
    rates = run("polynomial", 50, warmup_epochs=1, power=2.0)
    assert rates[:10] == pytest.approx([0.2 * (k + 1) / 10 for k in range(10)])
    assert rates[10:] == pytest.approx([0.2 * ((50 - k) / 40) ** 2 for k in range(10, 50)])


@pytest.mark.parametrize(("name", "last"), [("polynomial", 1 / 20), ("cosine", 0.5 * (1 + math.cos(0.95 * math.pi)))])
def test_rate_after_the_last_step_stays_at_zero(name, last):
    used = rates(build(name, optimizer := sgd(), 20), optimizer, [1.0] * 30)
    assert (used[0], used[19]) == pytest.approx((LR, LR * last))
    assert used[20:] == pytest.approx([0.0] * 10)


@pytest.mark.parametrize("name", ["polynomial", "cosine"])
def test_rate_with_a_warmup_of_almost_all_steps_rises_to_the_full_rate(name):
    rising = [0.02 * (k + 1) for k in range(10)]
    assert run(name, 11, warmup_epochs=1) == pytest.approx([*rising, LR])
    assert run(name, 10, warmup_epochs=1) == pytest.approx(rising)


def test_multi_step_at_each_milestone_divides_the_rate():
    rates = run("multi_step", 40, milestones=(1, 2.5), gamma=0.1)
    assert rates == pytest.approx([0.2] * 10 + [0.02] * 15 + [0.002] * 15)


def test_multi_step_with_warmup_rises_and_falls_by_gamma():
    rates = run("multi_step", 30, milestones=(2,), gamma=0.5, warmup_epochs=1)
    assert rates == pytest.approx([0.02 * (k + 1) for k in range(10)] + [0.2] * 10 + [0.1] * 10)


def test_cosine_over_a_run_falls_to_zero():
    rates = run("cosine", 50, warmup_epochs=1)
    assert rates[:10] == pytest.approx([0.2 * (k + 1) / 10 for k in range(10)])
    assert rates[10:] == pytest.approx([0.1 * (1 + math.cos(math.pi * (k - 10) / 40)) for k in range(10, 50)])


def test_constant_over_a_run_keeps_the_rate():
    assert run("constant", 20, warmup_epochs=0.5) == pytest.approx([0.04 * (k + 1) for k in range(5)] + [0.2] * 15)
