"""Short runs of the real training loop on drawn faces, healthy or wrong in a known way."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rayface import config as configs
from rayface.backbones.registry import BACKBONES
from rayface.data.drawing import draw_face, sample_identity, sample_view
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.sample_order import SampleOrder
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.run_directory import RunDirectory

PEOPLE, VIEWS, SIZE = 60, 20, 32
Images = np.ndarray


@cache
def drawn_faces() -> tuple[Images, np.ndarray]:
    """Images (n, 32, 32, 3) and labels (n,)."""
    views = [(person, view) for person in range(PEOPLE) for view in range(VIEWS)]
    images = [draw_face(sample_identity(0, person), sample_view(0, person, view), SIZE) for person, view in views]
    return np.stack(images), np.array([person for person, _ in views])


def build_small(*, embedding_size: int, image_size: int, width: float, dropout: float) -> nn.Module:
    """A net with a batch norm in the middle and one at the end, as the backbones have."""
    del width, dropout
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, 4, 2),
        nn.BatchNorm2d(16),
        nn.PReLU(16),
        nn.Flatten(),
        nn.Linear(16 * side**2, embedding_size),
        nn.BatchNorm1d(embedding_size),
    )


def train_faulty(
    run: Path,
    *overrides: str,
    seed: int = 0,
    steps: int = 100,
    labels: Callable[[np.ndarray, np.random.Generator], np.ndarray] = lambda labels, draw: labels,
    stored: Callable[[Images], Images] = lambda images: images,
    freeze: bool = False,
) -> RunDirectory:
    """Train some steps with the loop of a worker, which writes the journal, and return the run directory.

    Args:
        labels: changes the labels of the images.
        stored: changes the pixels of a batch.
        freeze: take the batch norms out of training mode.
    """
    BACKBONES["small"] = build_small
    base = [
        "backbone.name=small",
        "data.image_size=32",
        "data.train=unused",
        "train.precision=fp32",
        "train.log_every=2",
    ]
    config = configs.load("debug", None, [*base, f"train.seed={seed}", "train.checkpoint_every=1000", *overrides])
    images, truth = drawn_faces()
    draw = np.random.default_rng(seed)
    given, size = labels(truth, draw), config.train.batch_size
    order = SampleOrder(num_samples=len(images), batch_size=size)
    config = configs.with_overrides(config, {"train.epochs": steps / order.steps_per_epoch})
    directory = RunDirectory(run)
    directory.path.mkdir()
    directory.write_config(config)
    num_classes = int(given.max()) + 1
    directory.write_data_facts({"num_images": len(images), "num_classes": num_classes})
    facts = DatasetFacts(name="drawn", digest="d" * 64, licence="none")
    world = World(rank=0, size=1, local_size=64, device=torch.device("cpu"))  # one thread
    training = Training(config, directory, world, order, num_classes=num_classes, dataset=facts)
    if freeze:
        for module in training.backbone.modules():
            module.train(not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d))

    def batches_from(start: int) -> Iterator[Batch]:
        for step in range(start, steps):
            rows = draw.choice(len(images), size, replace=False)
            pixels = torch.from_numpy(stored(images[rows]))
            yield Batch(step=step, rows=slice(0, size), images=pixels, labels=torch.from_numpy(given[rows]), faults=())

    training.fit(batches_from)
    return directory
