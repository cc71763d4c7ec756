"""Distillation: the losses against loops, class means, settings that cannot work."""

import math

import numpy as np
import pytest
import torch

from rayface import config as configs
from rayface.training import teacher_cache
from rayface.training.distillation import angular_loss, check_distillation, feature_loss


def test_losses_are_those_of_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    angular = feature = 0.0
    for s, t in zip(student, teacher, strict=True):
        cosine = float(s @ t) / math.sqrt(float(s @ s) * float(t @ t))
        angular += (2 - 2 * cosine) / 5
        feature += sum(float(a - b) ** 2 for a, b in zip(s, t, strict=True)) / 35
    assert angular_loss(student, teacher).item() == pytest.approx(angular, rel=1e-12)
    assert feature_loss(student, teacher).item() == pytest.approx(feature, rel=1e-12)
    assert torch.autograd.gradcheck(lambda s: angular_loss(s, teacher), student)


def test_an_unknown_target_counts_nothing_and_gives_no_gradient() -> None:
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    teacher[1] = torch.nan
    loss = angular_loss(student, teacher)
    loss.backward()
    known = angular_loss(student[[0, 2]], teacher[[0, 2]])
    assert loss.item() == pytest.approx(known.item() * 2 / 3)
    assert torch.equal(student.grad[1], torch.zeros(4, dtype=torch.float64))
    assert student.grad[[0, 2]].abs().sum() > 0


def test_class_means_are_directions_and_damaged_samples_are_left_out() -> None:
    samples = np.array([[1, 0], [0, 1], [np.nan, np.nan], [0, -1]], np.float16)
    out = np.empty((4, 2), np.float16)
    teacher_cache._mean(samples, np.array([2, 2, 2, 0]), out)
    np.testing.assert_allclose(out[[2, 0]], [[math.sqrt(0.5)] * 2, [0, -1]], atol=1e-3)
    assert np.isnan(out[[1, 3]]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.teacher_cache=x"], "is set without train.teacher"),
        (["train.teacher=t", "train.distillation=center"], "set train.teacher_cache=DIR"),
        (["train.teacher=t", "train.distillation=feature", "train.teacher_cache=x"], "leave the cache out"),
        (["train.teacher=/nowhere"], "/nowhere"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_distillation(configs.load("debug", None, settings))
