"""The backbone's optimizers against updates written out in float64."""

import pytest
import torch
from torch import nn

from rayface.training.optim import build_optimizer, scaled_rate

LR, MOMENTUM, DECAY = 0.1, 0.9, 0.05
START, GRADIENTS = [0.5, -0.25, 2.0], ([0.3, -0.7, 0.1], [-0.2, 0.4, 0.6])


class Net(nn.Module):
    """One parameter that is trained, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.tensor(START, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.tensor(START, dtype=torch.float64), requires_grad=False)


def sgd(weight: float, first: float, second: float) -> float:
    buffer = 0.0
    for gradient in (first, second):
        buffer = MOMENTUM * buffer + gradient + DECAY * weight
        weight -= LR * buffer
    return weight


def adamw(weight: float, first: float, second: float) -> float:
    mean = square = 0.0
    for count, gradient in enumerate((first, second), start=1):
        weight *= 1 - LR * DECAY
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        weight -= LR * (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)) ** 0.5 + 1e-8)
    return weight


@pytest.mark.parametrize("update", [sgd, adamw])
def test_build_optimizer_after_two_steps_equals_the_written_out_update(update):
    net = Net()
    optimizer = build_optimizer(update.__name__, net, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    for gradient in GRADIENTS:
        net.trained.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    wanted = [update(*values) for values in zip(START, *GRADIENTS, strict=True)]
    assert net.trained.tolist() == pytest.approx(wanted, rel=1e-12)
    assert net.frozen.tolist() == START
    assert [group["params"] for group in optimizer.param_groups] == [[net.trained]]


def test_build_optimizer_of_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"^optim\.name: 'adam': must be sgd or adamw$"):
        build_optimizer("adam", Net(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


def test_scaled_rate_left_by_an_error_restores_each_groups_rate():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.2, 0.4), strict=True)])
    scaled = scaled_rate(optimizer, 0.5)
    scaled.__enter__()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert not scaled.__exit__(KeyError, KeyError(), None)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.4]
