"""Lengths in epochs, learning rates by group, states of another kind."""

import pytest
import torch

from rayface.config import ScheduleConfig
from rayface.training.schedules.base import LearningRate, RunLength, check_same_kind, refuse_warmup


def test_steps_of_a_fraction_of_an_epoch_are_rounded():
    length = RunLength(total_steps=100, steps_per_epoch=10)
    assert [length.steps(epochs) for epochs in (0, 1, 2.5, 0.26)] == [0, 10, 25, 3]


def test_learning_rate_set_for_several_groups_keeps_their_ratio():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.2, 0.02)]
    optimizer = torch.optim.SGD(groups)
    rate = LearningRate(optimizer)
    assert rate.factor == 1
    for factor in (0.5, 0.25):
        rate.set(factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.2 * factor, 0.02 * factor]


def test_learning_rate_after_loading_an_optimizer_sets_the_new_groups():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    rate = LearningRate(optimizer)
    optimizer.load_state_dict(torch.optim.SGD([parameter], lr=0.7).state_dict())
    rate.set(0.5)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_check_same_kind_of_a_state_with_other_keys_raises_one_line():
    check_same_kind({"step": 3}, {"step": 0})
    with pytest.raises(ValueError, match=r"^schedule\.name: .*another kind of schedule: must not change on a resume$"):
        check_same_kind({"step": 3, "best": 1.0}, {"step": 0})


def test_refuse_warmup_of_a_schedule_that_follows_the_loss_raises_one_line():
    refuse_warmup(ScheduleConfig(name="plateau"))
    with pytest.raises(ValueError, match=r"^schedule\.warmup_epochs: 1\.5: must be 0 with plateau"):
        refuse_warmup(ScheduleConfig(name="plateau", warmup_epochs=1.5))
