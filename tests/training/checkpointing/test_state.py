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
from rayface.training.trained import Trained, WeightAverage


def test_load_rng_of_saved_generators_continues_them():
    device = torch.device("cpu")
    random.gauss(0, 1)  # leaves a second number waiting
    saved = rng_tensors(3, device)
    first = [random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]
    load_rng({name: tensor.clone() for name, tensor in saved.items()}, device)
    assert [random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()] == first
    assert {name.split(".")[1] for name in saved} == {"3"}


def test_generator_of_a_gpu_is_saved_and_restored_on_its_device_alone(monkeypatch):
    cpu, gpu, restored = torch.device("cpu"), torch.device("cuda", 1), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([device.index], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state.tolist(), device)))
    for saved_on, loaded_on in ((gpu, gpu), (gpu, cpu), (cpu, gpu)):
        load_rng(rng_tensors(0, saved_on), loaded_on)
    assert restored == [([1], gpu)]


def parts(seed: int, *, average: bool = False) -> Trained:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    head = PartialFC(4, 9, CosFace(), sample_rate=0.5, seed=seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return Trained(backbone=net, head=head, optimizer=optimizer, average=WeightAverage(net, 0.9) if average else None)


def step(trained: Trained, number: int) -> None:
    draw = torch.Generator().manual_seed(number)
    images, labels = torch.randn(8, 6, generator=draw), torch.randint(9, (8,), generator=draw)
    trained.optimizer.zero_grad()
    trained.head.loss(trained.backbone(images), labels).backward()
    trained.optimizer.step()
    trained.head.step(0.1)
    trained.update_average()


def test_state_saved_and_loaded_continues_weights_centers_moments_and_generators(tmp_path):
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    trained = parts(0, average=True)
    for number in range(3):
        step(trained, number)
    progress = Progress(step=3, head=trained.head.values())
    folder = checkpoint.save(tmp_path, whole_state(trained, world), progress, keep=1)
    drawn = torch.rand(1)
    other = parts(0, average=True)
    step(other, 9)
    torch.manual_seed(5)  # `parts` seeds the generator: it would be where the saved one is
    assert load_state(CheckpointFolder(folder), other, world) == progress
    assert torch.equal(torch.rand(1), drawn)
    for number in (3, 4):
        step(trained, number)
        step(other, number)
    wanted = whole_state(trained, world)
    assert {"backbone.0.weight", "ema.0.weight", "ema_steps", "head.centers"} < wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in whole_state(other, world).items())
    assert other.head.step_count == 5


def test_state_loaded_on_a_rank_that_did_not_exist_leaves_its_generators(tmp_path):
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    trained = parts(0)
    step(trained, 0)
    progress = Progress(step=1, head=trained.head.values())
    folder = checkpoint.save(tmp_path, whole_state(trained, world), progress, keep=1)
    other = parts(1)
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    load_state(CheckpointFolder(folder), other, replace(world, rank=5, size=6))
    assert torch.equal(torch.rand(1), wanted)
    assert torch.equal(other.head.centers, trained.head.centers)


def test_names_of_a_state_tell_weights_optimizer_head_and_generators_of_the_rank():
    world = World(rank=2, size=3, local_size=3, device=torch.device("cpu"))
    trained = parts(0)
    step(trained, 0)
    names = whole_state(trained, world).keys()
    kinds = {name.split(".")[0] for name in names}
    assert kinds == {"backbone", "optimizer", "head", "rng"}
    assert {name for name in names if name.startswith("head.")} == {"head.centers", "head.momentum"}
    assert {name for name in names if name.startswith("rng.")} == {"rng.2.torch", "rng.2.numpy", "rng.2.python"}
