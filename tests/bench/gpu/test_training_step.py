"""The step trains, and refuses what is not finite as training does."""

import pytest
import torch

from rayface.bench.gpu.training_step import StepSetting, TrainingStep

SETTING = StepSetting(net="mini", num_classes=20, batch_size=8, image_size=16, embedding_size=8, bf16=False, rate=0.05)


def test_run_repeated_on_one_batch_lowers_the_loss_and_marks_four_times() -> None:
    step, marks = TrainingStep(SETTING, "cpu"), []
    images, labels = step.images()
    losses = [step.run(images, labels, lambda: marks.append(1)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert len(marks) == 20


def test_run_with_a_gradient_that_is_not_finite_moves_nothing() -> None:
    step = TrainingStep(SETTING, "cpu")
    images, labels = step.images()
    before = step.head.centers.clone()
    next(step.backbone.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ArithmeticError, match=r"norm of the gradient (nan|inf)"):
        step.run(images, labels)
    assert torch.equal(step.head.centers, before)
