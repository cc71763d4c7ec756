"""Schedules against their formulas."""

import pytest
import torch

from rayface.training.schedules import build_schedule


def run(name: str, steps: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule = build_schedule(name, optimizer, total_steps=steps, steps_per_epoch=10, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step(1.0)
    return rates


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


def test_constant():
    assert run("constant", 20, warmup_epochs=0.5) == pytest.approx([0.04 * (k + 1) for k in range(5)] + [0.2] * 15)


@pytest.mark.parametrize("name", ["polynomial", "multi_step", "constant"])
def test_state_goes_on_where_it_was(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    options = {"total_steps": 30, "steps_per_epoch": 10, "warmup_epochs": 1, "milestones": (2,)}
    schedule = build_schedule(name, optimizer, **options)
    for _ in range(17):
        schedule.step(1.0)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    build_schedule(name, other, **options).load_state_dict(schedule.state_dict())
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_unknown_name():
    with pytest.raises(ValueError, match=r"schedule.name: 'cosin'"):
        run("cosin", 2)
