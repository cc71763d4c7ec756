"""Distillation: while it learns to classify, a student's embeddings are drawn to those of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rayface.config import Config
from rayface.data.images import to_device
from rayface.data.streaming.micro_batches import MicroBatch
from rayface.data.streaming.sample_order import SampleOrder
from rayface.models.model_files import load_model, weights_digest, weights_file
from rayface.models.model_info import ModelInfo
from rayface.precision import autocast, uses_bf16
from rayface.training.distributed import World
from rayface.training.teacher_cache import by_class, by_sample

if TYPE_CHECKING:  # it imports Ray, which must not be imported beside its start
    from rayface.data.streaming.batches import Batch


def angular_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of the directions, `mean_i |s_i/|s_i| - t_i/|t_i||^2` (VarGFaceNet, arXiv 1910.04985).

    Args:
        student: (n, D), raw; gets the gradient.
        teacher: (n, D), any length; a row of NaN is of an unknown target and counts as 0.

    Returns:
        scalar in [0, 4], the mean over all n.
    """
    known = torch.isfinite(teacher).all(1)
    # zeros before the arithmetic: NaN would come back in the gradient
    distances = (F.normalize(student) - F.normalize(teacher.nan_to_num(0.0))).square().sum(1)
    return torch.where(known, distances, 0.0).mean()


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the vectors themselves, over all their numbers: `mean_i |s_i - t_i|^2 / D`.

    Args:
        student: (n, D), raw; gets the gradient.
        teacher: (n, D), raw.
    """
    return F.mse_loss(student, teacher)


class Teacher(Protocol):
    """Gives some rows of a rank's batch their targets (n, D), float32 on the images' device, without gradient."""

    def __call__(self, images: Tensor, batch: Batch, rows: slice) -> Tensor: ...


@dataclass
class Distillation:
    """The weighted loss between a student's embeddings and its teacher's targets; `last` is the newest, unweighted."""

    teacher: Teacher
    loss: Callable[[Tensor, Tensor], Tensor]
    weight: float
    last: Tensor = field(default_factory=lambda: torch.tensor(torch.nan))

    def __call__(self, embeddings: Tensor, images: Tensor, batch: Batch, piece: MicroBatch) -> Tensor:
        """This rank's share of the loss, whose mean over the ranks is the mean over all images of the micro-batch.

        Args:
            embeddings: (n, D), float32, raw.
            images: (n, 3, S, S), as the student saw them.
            batch: the batch that they belong to.
            piece: which of its rows these are, and how many each rank has.
        """
        if not len(embeddings):
            return embeddings.sum()
        loss = self.loss(embeddings, self.teacher(images, batch, piece.rows))
        self.last = loss.detach()
        return self.weight * len(embeddings) * len(piece.counts) / sum(piece.counts) * loss


def build_distillation(
    config: Config, sample_order: SampleOrder, num_classes: int, world: World
) -> Distillation | None:
    """Return the configured distillation, None without a teacher. A teacher cache must be filled already.

    Raises:
        ValueError: see `check_distillation`.
    """
    train = config.train
    if train.teacher is None:
        return None
    loss = feature_loss if train.distillation == "feature" else angular_loss
    teacher: Teacher
    if train.teacher_cache is None:
        teacher = every_view(config, world)
    elif train.distillation == "center":
        teacher = class_targets(by_class(Path(train.teacher_cache), num_classes))
    else:
        teacher = sample_targets(by_sample(Path(train.teacher_cache), sample_order.num_samples), sample_order)
    return Distillation(teacher, loss, train.distillation_weight)


def check_distillation(config: Config, teacher: ModelInfo | None = None) -> None:
    """Refuse conflicting settings and a teacher that does not fit the student; runs on the driver.

    Args:
        teacher: embedding_size and image_size of a teacher that is not trained yet; None: read from its file.

    Raises:
        ValueError: one line.
    """
    train, backbone = config.train, config.backbone
    if train.teacher is None:
        if train.teacher_cache is not None:
            raise ValueError(f"train.teacher_cache: {train.teacher_cache}: is set without train.teacher: set that too")
        return
    if train.distillation == "center" and train.teacher_cache is None:
        raise ValueError("train.distillation: center: takes means over all images: set train.teacher_cache=DIR")
    if train.distillation == "feature" and train.teacher_cache is not None:
        raise ValueError(
            "train.distillation: feature: needs lengths, and train.teacher_cache holds directions: leave the cache "
            "out, or use angular"
        )
    info = teacher or load_model(train.teacher, backbone=train.teacher_backbone).info
    if info.embedding_size != backbone.embedding_size:
        raise ValueError(
            f"backbone.embedding_size: {backbone.embedding_size}: the teacher's is {info.embedding_size}: use the same"
        )
    if train.teacher_cache is None and info.image_size != config.data.image_size:
        raise ValueError(
            f"data.image_size: {config.data.image_size}: the teacher takes {info.image_size} pixels: use the same, "
            "or train.teacher_cache=DIR, for which images are decoded at the teacher's size"
        )


def teacher_digest(config: Config) -> str | None:
    """Return the digest of the teacher's weights, None without a teacher."""
    if config.train.teacher is None:
        return None
    return weights_digest(weights_file(config.train.teacher))


def every_view(config: Config, world: World) -> Teacher:
    """Embed each augmented image with the teacher, in train.precision: one forward pass of the teacher per step."""
    assert config.train.teacher is not None
    model = load_model(config.train.teacher, backbone=config.train.teacher_backbone, device=world.device)
    module = model.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bf16 = uses_bf16(config.train.precision, world.device)

    def targets(images: Tensor, batch: Batch, rows: slice) -> Tensor:
        with torch.no_grad(), autocast(world.device, bf16):
            embeddings: Tensor = module(images)
        return embeddings.float()

    return targets


def sample_targets(targets: np.ndarray, sample_order: SampleOrder) -> Teacher:
    """Look up targets (N, D) by sample; they are of the unaugmented image, whatever view of it the student sees."""

    @lru_cache(maxsize=1)  # drawing a window of 65,536 images takes 11 ms
    def samples(window: int) -> np.ndarray:
        return sample_order.window(window)

    def of_batch(images: Tensor, batch: Batch, rows: slice) -> Tensor:
        window, place = sample_order.window_of(batch.step)
        found = targets[samples(window)[place, batch.rows][rows]]
        return to_device(torch.from_numpy(found.astype(np.float32)), images.device)

    return of_batch


def class_targets(targets: np.ndarray) -> Teacher:
    """Look up targets (C, D) by label."""

    def of_batch(images: Tensor, batch: Batch, rows: slice) -> Tensor:
        found = targets[batch.labels[rows].numpy()]
        return to_device(torch.from_numpy(found.astype(np.float32)), images.device)

    return of_batch
