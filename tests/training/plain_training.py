"""Training of a net without batch statistics and dropout, on batches that may be poisoned."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from rayface import config as configs
from rayface.backbones.registry import BACKBONES
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.sample_order import SampleOrder, rank_rows
from rayface.tracking import read_metrics
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.run_directory import RunDirectory

SAMPLE_ORDER = SampleOrder(num_samples=66, batch_size=11)  # 6 steps an epoch; parts of 3 and 4 images on three ranks
FACTS = DatasetFacts(name="drawn", digest="d" * 64, licence="none")


def build_plain(*, embedding_size: int, image_size: int, width: float, dropout: float) -> nn.Module:
    """A net without batch statistics and dropout."""
    del width, dropout
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.Flatten(), nn.Linear(8 * (image_size // 4) ** 2, embedding_size))


def training(run: Path, *overrides: str, rank: int = 0, size: int = 1) -> Training:
    BACKBONES["plain"] = build_plain  # also in spawned ranks
    base = ["train.epochs=2", "train.checkpoint_every=4", "train.precision=fp32", "train.log_every=1"]
    options = ["backbone.name=plain", "backbone.dropout=0", "data.image_size=32", "data.train=unused", *base]
    config = configs.load("debug", None, [*options, *overrides])
    world = World(rank=rank, size=size, local_size=size, device=torch.device("cpu"))
    return Training(config, RunDirectory(run), world, SAMPLE_ORDER, num_classes=6, dataset=FACTS)


def batches_for(net: Training, poisoned: tuple[int, ...] = (), stop: int = 12):
    poison(net, poisoned)
    rows = rank_rows(SAMPLE_ORDER.batch_size, net.world.rank, net.world.size)

    def batches_from(start: int):
        for step in range(start, stop):
            draw = np.random.default_rng(step)
            images = torch.from_numpy(draw.integers(0, 256, (SAMPLE_ORDER.batch_size, 32, 32, 3), dtype=np.uint8))
            labels = torch.from_numpy(draw.integers(0, 6, SAMPLE_ORDER.batch_size))
            yield Batch(step=step, rows=rows, images=images[rows], labels=labels[rows], faults=())

    return batches_from


def poison(net: Training, steps: tuple[int, ...]) -> None:
    """Have the images of these steps hold NaN as long as the rate is the first one."""
    prepare = net.train_step.prepare

    def broken(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = prepare(batch)
        return images * (torch.nan if batch.step in steps and net.recovery.rate_factor == 1 else 1), labels

    net.train_step.prepare = broken


def state_of(net: Training) -> dict[str, torch.Tensor]:
    return {"centers": net.head.centers, **net.backbone.state_dict()}


def same(one: Training, other: Training) -> bool:
    theirs = state_of(other)
    return all(torch.equal(value, theirs[name]) for name, value in state_of(one).items())


def losses(run: Path) -> dict[int, float]:
    return {step: value for step, value, _ in read_metrics(run / "journal")["train/loss"]}
