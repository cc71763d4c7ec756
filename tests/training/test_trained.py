"""What a rank trains: heads with networks of their own and the average of the weights, through loop and checkpoints."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from rayface import config as configs
from rayface.backbones.registry import BACKBONES
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.pair_order import PairOrder
from rayface.data.streaming.sample_order import SampleOrder
from rayface.heads import head_class
from rayface.machine import num_cpus
from rayface.models.model_info import ModelInfo
from rayface.training.checkpointing.state import whole_state
from rayface.training.checkpointing.tools import export
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.recovery.resume_check import check_resumable
from rayface.training.run_directory import RunDirectory
from rayface.training.trained import WeightAverage
from tests.ranks import run_ranks
from tests.training.plain_training import FACTS, build_plain, losses

STEPS = 8
OPTIONS = {
    "partial_fc": ["head.name=partial_fc", "train.ema=0.9"],
    "dcq": ["head.name=dcq", "head.options.queue_size=20", "head.options.momentum=0.8"],
    "f2c": ["head.name=f2c", "head.options.pool_size=4", "head.options.momentum=0.8"],
}


class Calls(TorchFunctionMode):
    """Counts calls of PyTorch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def build_normed(*, embedding_size: int, image_size: int, width: float, dropout: float) -> nn.Module:
    """A net with batch statistics."""
    plain = build_plain(embedding_size=embedding_size, image_size=image_size, width=width, dropout=dropout)
    return nn.Sequential(plain[0], nn.BatchNorm2d(8), *plain[1:], nn.BatchNorm1d(embedding_size))


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    yield
    BACKBONES.pop("normed", None)


def order_of(head: str, batch_size: int) -> SampleOrder:
    """Return an order with 4 steps an epoch."""
    stream = head_class(head).stream
    if stream == "images":
        return SampleOrder(num_samples=4 * batch_size, batch_size=batch_size)
    both = stream == "pairs_and_images"
    return PairOrder(num_samples=8 * batch_size, num_identities=6, batch_size=batch_size, with_instances=both)


def training(run: Path, head: str, *overrides: str, batch_size: int = 4, rank: int = 0, size: int = 1) -> Training:
    BACKBONES.update(plain=build_plain, normed=build_normed)  # also in spawned ranks
    base = [
        "backbone.name=normed",
        "data.image_size=32",
        "data.train=unused",
        "train.epochs=2",
        "train.checkpoint_every=3",
    ]
    base += [f"train.batch_size={batch_size}", "train.log_every=1", "train.precision=fp32", "optim.lr=0.02"]
    config = configs.load("debug", None, [*base, *OPTIONS[head], *overrides])
    # as beside another worker: one thread each
    world = World(rank=rank, size=size, local_size=num_cpus(), device=torch.device("cpu"))
    return Training(config, RunDirectory(run), world, order_of(head, batch_size), num_classes=6, dataset=FACTS)


def batches_for(net: Training, stop: int = STEPS) -> Callable[[int], Iterator[Batch]]:
    images = net.sample_order.images_per_step
    rows = net.sample_order.rank_images(net.world.rank, net.world.size)

    def batches_from(start: int) -> Iterator[Batch]:
        for step in range(start, stop):
            draw = np.random.default_rng(step)
            pixels = torch.from_numpy(draw.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8))
            labels = torch.from_numpy(draw.integers(0, 6, images))
            if net.head.stream == "pairs":
                labels[1::2] = labels[0::2]
            yield Batch(step=step, rows=rows, images=pixels[rows], labels=labels[rows], faults=())

    return batches_from


def train_until(net: Training, stop: int) -> None:
    with pytest.raises(RuntimeError, match=f"the data stream ended at step {stop}"):
        net.fit(batches_for(net, stop))
    net.checkpoints.wait()


@pytest.mark.parametrize(
    ("head", "network"), [("partial_fc", "ema"), ("dcq", "head.key"), ("f2c", "backbone")], ids=OPTIONS
)
def test_training_resumed_equals_the_uninterrupted_one_and_exports_the_network_of_its_head(
    tmp_path: Path, head: str, network: str
) -> None:
    whole, parts = training(tmp_path / "whole", head), training(tmp_path / "parts", head)
    whole.fit(batches_for(whole))
    train_until(parts, 5)
    check_resumable(RunDirectory(tmp_path / "parts"), parts.config, parts.sample_order)
    resumed = training(tmp_path / "parts", head)
    assert resumed.step == 3
    resumed.fit(batches_for(resumed))
    wanted = whole_state(whole.trained, whole.world)
    found = whole_state(resumed.trained, resumed.world)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    configs.dump(whole.config, tmp_path / "whole" / "config.yaml")
    export(tmp_path / "whole", tmp_path / "exported")
    for folder in (tmp_path / "parts", tmp_path / "exported"):
        assert ModelInfo.read(folder / "model.json").network == network
        saved = load_file(folder / "model.safetensors")
        assert all(torch.equal(value, wanted[f"{network}.{name}"]) for name, value in saved.items())
    assert torch.equal(saved["0.weight"], wanted["backbone.0.weight"]) == (network == "backbone")


def train_on_a_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for head in ("dcq", "f2c"):
        net = training(folder / head, head, "backbone.name=plain", batch_size=5, rank=rank, size=2)
        train_until(net, 7)
        dist.barrier()


def test_training_on_two_ranks_continued_on_one_has_the_losses_of_one(tmp_path: Path) -> None:
    """Parts of 2 and 3 pairs; the net has no batch statistics."""
    run_ranks(train_on_a_rank, (tmp_path,), 2)
    for head in ("dcq", "f2c"):
        one = training(tmp_path / f"{head}-one", head, "backbone.name=plain", batch_size=5)
        one.fit(batches_for(one))
        resumed = training(tmp_path / head, head, "backbone.name=plain", batch_size=5)
        assert resumed.step == 6
        resumed.fit(batches_for(resumed))
        wanted, found = losses(tmp_path / f"{head}-one"), losses(tmp_path / head)
        assert list(found) == list(wanted)
        assert list(found.values()) == pytest.approx(list(wanted.values()), rel=1e-4)


def test_start_with_weights_gives_them_to_every_network(tmp_path: Path) -> None:
    first = training(tmp_path / "first", "dcq")
    first.fit(batches_for(first))
    net = training(tmp_path / "second", "dcq", f"backbone.weights={tmp_path / 'first'}", "train.ema=0.5")
    given = load_file(tmp_path / "first" / "model.safetensors")
    for network in (net.backbone, net.head.networks()["key"], net.trained.average.module):
        assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())
    assert net.trained.exported[0] == "ema"


def test_weight_average_moves_all_tensors_of_a_type_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)])
    average, calls = WeightAverage(net, 0.4), Calls()
    with calls:
        average.update_parameters(net)
        average.update_parameters(net)
    assert calls.names["copy_"] == 0
    assert calls.names["_foreach_copy_"] == 5  # the first weights; twice, statistics and counts of batches
    assert calls.names["_foreach_lerp_"] == 1


def test_weight_average_of_steps_equals_its_definition_with_a_shorter_memory_at_first() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    average, wanted = WeightAverage(net, 0.4), []
    for number in range(12):
        with torch.no_grad():
            net[0].weight += number
        net(torch.randn(4, 2, dtype=torch.float64))
        average.update_parameters(net)
        decay = 0 if number == 0 else min(0.4, (1 + number) / (10 + number))
        before = wanted[-1] if wanted else 0.0
        wanted.append(decay * before + (1 - decay) * net[0].weight.detach().clone())
        torch.testing.assert_close(average.module[0].weight, wanted[-1])
    assert torch.equal(average.module[1].running_mean, net[1].running_mean)
    assert json.loads(json.dumps(int(average.n_averaged))) == 12
