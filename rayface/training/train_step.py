"""One training step on a rank's part of the global batch: forward, backward, head and optimizer step."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from rayface.config import Config
from rayface.data.degradations import Degradations, degrade
from rayface.data.images import augment, to_device
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.micro_batches import MicroBatch, micro_batches
from rayface.heads import NonFiniteEmbeddingsError
from rayface.precision import autocast
from rayface.training.builders import no_grad_sync
from rayface.training.distillation import Distillation
from rayface.training.distributed import World
from rayface.training.optim import scaled_rate
from rayface.training.recovery.rollback import NotFiniteError
from rayface.training.recovery.watchdog import Watchdog
from rayface.training.step_measures import by_name, classes_used, measure
from rayface.training.trained import Trained

_DEGRADATIONS = tuple(field.name for field in fields(Degradations))


@dataclass(kw_only=True)
class TrainStep:
    """One optimizer step; the batch is split into micro-batches by train.max_batch_per_worker.

    Attributes:
        batch_size: B, the global batch size.
        bf16: whether the backbone's forward pass runs under bf16 autocast.
        forward: the backbone to train through, compiled or data-parallel.
        before_update: called before the head updates rows, with the rows, or None for all.
        measures: of the last step that was measured, by name; see `step_measures`.
    """

    config: Config
    world: World
    batch_size: int
    bf16: bool
    trained: Trained
    forward: nn.Module
    distillation: Distillation | None
    watchdog: Watchdog
    before_update: Sequence[Callable[[Tensor | None], None]]
    measures: dict[str, float] = field(default_factory=dict)

    def run(self, batch: Batch, rate_factor: float, *, measured: bool = False) -> float:
        """Train on this rank's part of the global batch.

        Args:
            rate_factor: multiplies the schedule's learning rate.
            measured: also set `measures`, of the first micro-batch.

        Returns:
            The mean loss over the global batch, before the update.

        Raises:
            NotFiniteError: on every rank, before the weights are updated; with train.resize=rescale_lr, which updates
                them after each micro-batch, earlier micro-batches of the step have been applied.
        """
        images, labels = self.prepare(batch)
        pieces, separate = self._pieces, self.config.train.resize == "rescale_lr"
        value = 0.0
        pending: list[tuple[float, Tensor]] = []  # shares and losses; one transfer from the device reads all
        figures, num_classes = Tensor(), 0
        self.trained.optimizer.zero_grad(set_to_none=True)
        for piece in pieces:
            last = piece is pieces[-1]
            with contextlib.nullcontext() if last or separate else no_grad_sync(self.forward):
                loss, embeddings = self._loss(images, labels, piece, batch.step)
                total = loss
                if self.distillation is not None:
                    total = loss + self.distillation(embeddings, images[piece.rows], batch, piece)
                self.watchdog.at("backward", batch.step, piece.number)
                total.backward(torch.full_like(loss, 1.0 if separate else piece.share))
            pending.append((piece.share, loss.detach()))
            if measured and piece.number == 0 and embeddings.ndim == 2:  # a head of a plugin may embed nothing
                figures, num_classes = measure(embeddings, images).to(loss.dtype), classes_used(self.trained.head)
            if last or separate:
                added, norm, *found = self._fetch(pending, figures)
                if found:
                    self.measures = by_name(found, num_classes, batch.labels)
                value += added
                pending, figures = [], Tensor()
                self._update(value, norm, batch.step, piece, rate_factor * (piece.share if separate else 1.0))
        return value

    @cached_property
    def _pieces(self) -> list[MicroBatch]:
        limit = self.config.train.max_batch_per_worker
        return micro_batches(self.batch_size, self.world.rank, self.world.size, limit)

    def _fetch(self, pending: Sequence[tuple[float, Tensor]], figures: Tensor) -> list[float]:
        """Clip the gradient; return the sum of shares of losses, the gradient's norm, and the figures (n,)."""
        parameters = self.trained.backbone.parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.clip_norm or math.inf)
        parts = [*(loss for _, loss in pending), norm, figures]
        numbers = torch.cat([part.to(self.world.device).reshape(-1) for part in parts]).tolist()
        value = 0.0
        for (share, _), number in zip(pending, numbers, strict=False):
            value += share * number  # `sum` rounds otherwise from Python 3.12 on
        return [value, *numbers[len(pending) :]]

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return augmented images and labels on the device; all randomness depends on (seed, step) only."""
        data, device = self.config.data, self.world.device
        seeds = np.random.SeedSequence([self.config.train.seed, batch.step]).generate_state(3, np.uint64)
        torch.manual_seed(int(seeds[0] >> 1) + self.world.rank)  # dropout
        num_images = self.batch_size * self.trained.head.images_per_row
        shares = Degradations(**{name: getattr(data, name) for name in _DEGRADATIONS})
        generator = torch.Generator().manual_seed(int(seeds[2] >> 1))
        images = augment(
            degrade(batch.images, batch.rows, num_images, generator, shares, device),
            batch.rows,
            num_images,
            torch.Generator().manual_seed(int(seeds[1] >> 1)),
            flip=data.flip,
            shift=data.shift,
            brightness=data.brightness,
            contrast=data.contrast,
            saturation=data.saturation,
        )
        return images.contiguous(memory_format=torch.channels_last), to_device(batch.labels, device)

    def _loss(self, images: Tensor, labels: Tensor, piece: MicroBatch, step: int) -> tuple[Tensor, Tensor]:
        """Return the head's loss of a micro-batch, and the embeddings of the backbone's last pass."""
        head, embeddings = self.trained.head, Tensor()

        def embed(images: Tensor, net: nn.Module | None = None) -> Tensor:
            nonlocal embeddings
            with autocast(self.world.device, self.bf16):
                found: Tensor = (self.forward if net is None else net)(images).float()
            self.watchdog.at("loss", step, piece.number)
            if net is None:
                embeddings = found
            return found

        own = slice(piece.rows.start * head.images_per_row, piece.rows.stop * head.images_per_row)
        self.watchdog.at("forward", step, piece.number)
        try:
            return head.train_loss(embed, images[own], labels[own], piece.counts), embeddings
        except NonFiniteEmbeddingsError as error:  # raised on every rank
            raise NotFiniteError(f"step {step}: {error}", step=step, bad_from=step) from error

    def _update(self, value: float, norm: float, step: int, piece: MicroBatch, rate_factor: float) -> None:
        """Update backbone and class centers with the accumulated gradients, and clear the gradients."""
        self.watchdog.at("update", step, piece.number)
        head, optimizer, train = self.trained.head, self.trained.optimizer, self.config.train
        if not math.isfinite(value):
            raise NotFiniteError(f"the loss of step {step} is {value}", step=step, bad_from=step)
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient of step {step} is not finite", step=step, bad_from=step + 1)
        # With a single micro-batch per update, the head updates only the rows of that one.
        single = piece.number == 0 or train.resize == "rescale_lr"
        sparse = single and self.config.head.center_update == "sparse"
        rows = head.last_rows() if sparse else None
        for wait in self.before_update:
            wait(rows)
        with scaled_rate(optimizer, rate_factor):
            optimizer.step()
            head.step(optimizer.param_groups[0]["lr"])
        self.trained.update_average()
        optimizer.zero_grad(set_to_none=True)
