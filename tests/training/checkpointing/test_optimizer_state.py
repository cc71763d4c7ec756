"""The optimizer's state by parameter name: through a checkpoint, for a reordered net, and from numbered checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.optimizer_state import by_name, load_optimizer_state, optimizer_state
from rayface.training.checkpointing.progress import Progress
from rayface.training.checkpointing.state import CheckpointFolder


class Net(nn.Module):
    """Three layers of one shape, made in the order that is asked for, beside tensors that are not trained."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("seen", torch.zeros(2))
        for name in order:
            self.add_module(name, nn.Linear(3, 3))
        for name, layer in self.named_children():
            layer.load_state_dict({"weight": torch.eye(3) * ord(name) / 100, "bias": torch.ones(3)})

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


def made(kind: str, order: str = "abc") -> tuple[Net, Optimizer]:
    net = Net(order)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return net, SGD(parameters, lr=0.1, momentum=0.9) if kind == "sgd" else AdamW(parameters, lr=0.1)


def step(net: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.arange(6.0).view(2, 3) / 10).square().mean().backward()
    optimizer.step()


def numbered(optimizer: Optimizer) -> dict[str, Tensor]:
    """As checkpoints named the state before."""
    return {
        f"optimizer.{number}.{key}": value
        for number, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }


def save(folder: Path, net: nn.Module, state: dict[str, Tensor]) -> Path:
    weights = {f"backbone.{name}": tensor for name, tensor in net.state_dict().items()}
    return checkpoint.save(folder, {**weights, **state}, Progress(step=1), keep=1)


def load(folder: Path, net: nn.Module, optimizer: Optimizer) -> None:
    tensors = checkpoint.empty_like_saved(folder, "optimizer.")
    weights = {f"backbone.{name}": tensor for name, tensor in net.state_dict().items()}
    checkpoint.load(folder, {**weights, **tensors})
    load_optimizer_state(optimizer, net, CheckpointFolder(folder).by_name(net, tensors))


@pytest.mark.parametrize("naming", ["name", "number"])
@pytest.mark.parametrize("order", ["abc", "cab"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_state_loaded_into_a_reordered_net_continues_as_if_never_stopped(kind, order, naming, tmp_path):
    net, optimizer = made(kind)
    step(net, optimizer)
    folder = save(tmp_path, net, optimizer_state(optimizer, net) if naming == "name" else numbered(optimizer))
    other, other_optimizer = made(kind, order)
    load(folder, other, other_optimizer)
    for _ in range(3):
        step(net, optimizer)
        step(other, other_optimizer)
    mine = dict(other.named_parameters())
    assert all(torch.equal(parameter, mine[name]) for name, parameter in net.named_parameters())


def test_optimizer_state_is_named_by_parameter():
    net, optimizer = made("sgd")
    step(net, optimizer)
    names = {f"optimizer.state.{layer}.{kind}.momentum_buffer" for layer in "abc" for kind in ("weight", "bias")}
    assert optimizer_state(optimizer, net).keys() == names


@pytest.mark.parametrize("missing", ["saved", "loaded"])
def test_numbered_optimizer_state_of_another_net_is_refused_in_one_line(missing, tmp_path):
    net, optimizer = made("sgd", "abc" if missing == "loaded" else "ab")
    net.forward = lambda x: sum(layer(x) for layer in net.children())
    step(net, optimizer)
    folder = save(tmp_path, net, numbered(optimizer))
    other, _ = made("sgd", "abc" if missing == "saved" else "ab")
    with pytest.raises(ValueError, match="fits no parameter of this backbone") as caught:
        by_name(folder, other, checkpoint.empty_like_saved(folder, "optimizer."))
    assert "\n" not in str(caught.value)


def test_optimizer_state_of_a_missing_parameter_is_refused():
    net, optimizer = made("sgd")
    step(net, optimizer)
    other, other_optimizer = made("sgd", "ab")
    with pytest.raises(ValueError, match=r"optimizer state of c\.weight"):
        load_optimizer_state(other_optimizer, other, optimizer_state(optimizer, net))


def test_optimizer_state_is_loaded_in_the_memory_format_of_its_parameter():
    net = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    saved = torch.arange(48.0).view(4, 3, 2, 2)
    load_optimizer_state(optimizer, net, {"optimizer.state.weight.momentum_buffer": saved})
    loaded = optimizer.state[net.weight]["momentum_buffer"]
    assert loaded.stride() == net.weight.stride() != saved.stride()
    assert torch.equal(loaded, saved)
