"""The state of a run as tensors: weights, optimizer, head and random generators."""

import random
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from rayface.heads import CosFace, PartialFC
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.progress import Progress
from rayface.training.checkpointing.state import CheckpointFolder, load_rng, load_state, rng_tensors, whole_state
from rayface.training.distributed import World


def test_load_rng_of_saved_generators_continues_them():
    device = torch.device("cpu")
    random.gauss(0, 1)  # leaves a second number waiting
    saved = rng_tensors(3, device)
    first = [random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]
    load_rng({name: tensor.clone() for name, tensor in saved.items()}, device)
    assert [random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()] == first
    assert {name.split(".")[1] for name in saved} == {"3"}


def parts(seed: int) -> tuple[nn.Module, PartialFC, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    head = PartialFC(4, 9, CosFace(), sample_rate=0.5, seed=seed)
    return net, head, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def step(net: nn.Module, head: PartialFC, optimizer: torch.optim.Optimizer, number: int) -> None:
    draw = torch.Generator().manual_seed(number)
    images, labels = torch.randn(8, 6, generator=draw), torch.randint(9, (8,), generator=draw)
    optimizer.zero_grad()
    head.loss(net(images), labels).backward()
    optimizer.step()
    head.step(0.1)


def test_state_saved_and_loaded_continues_weights_centers_moments_and_generators(tmp_path):
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    net, head, optimizer = parts(0)
    for number in range(3):
        step(net, head, optimizer, number)
    progress = Progress(step=3, head=head.values())
    folder = checkpoint.save(tmp_path, whole_state(net, head, optimizer, world), progress, keep=1)
    drawn = torch.rand(1)
    other = parts(0)
    step(*other, 9)
    assert load_state(CheckpointFolder(folder), *other, world) == progress
    assert torch.equal(torch.rand(1), drawn)
    for number in (3, 4):
        step(net, head, optimizer, number)
        step(*other, number)
    assert all(torch.equal(value, other[0].state_dict()[name]) for name, value in net.state_dict().items())
    assert torch.equal(other[1].centers, head.centers)
    assert other[1].step_count == 5


def test_state_loaded_on_a_rank_that_did_not_exist_leaves_its_generators(tmp_path):
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    net, head, optimizer = parts(0)
    step(net, head, optimizer, 0)
    progress = Progress(step=1, head=head.values())
    folder = checkpoint.save(tmp_path, whole_state(net, head, optimizer, world), progress, keep=1)
    other = parts(1)
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    load_state(CheckpointFolder(folder), *other, replace(world, rank=5, size=6))
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(other[1].centers, head.centers)


def test_names_of_a_state_tell_weights_optimizer_head_and_generators_of_the_rank():
    world = World(rank=2, size=3, local_size=3, device=torch.device("cpu"))
    net, head, optimizer = parts(0)
    step(net, head, optimizer, 0)
    names = whole_state(net, head, optimizer, world).keys()
    kinds = {name.split(".")[0] for name in names}
    assert kinds == {"backbone", "optimizer", "head", "rng"}
    assert {name for name in names if name.startswith("head.")} == {"head.centers", "head.momentum"}
    assert {name for name in names if name.startswith("rng.")} == {"rng.2.torch", "rng.2.numpy", "rng.2.python"}
