"""A run of the debug preset on images that a test draws."""

from pathlib import Path

import torch

from rayface import config as configs
from rayface.config import Config
from rayface.data.streaming.sample_order import SampleOrder
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.run_directory import RunDirectory

SAMPLE_ORDER = SampleOrder(num_samples=24, batch_size=4)
FACTS = DatasetFacts(name="drawn", digest="d" * 64, licence="none")


def config_of(*overrides: str) -> Config:
    return configs.load("debug", None, ["data.image_size=32", "data.train=unused", "optim.momentum=0", *overrides])


def training(run: Path, config: Config) -> Training:
    world = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))
    return Training(config, RunDirectory(run), world, SAMPLE_ORDER, num_classes=6, dataset=FACTS)
