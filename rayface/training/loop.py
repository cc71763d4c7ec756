"""What every worker runs: one training step after the other, checkpoints and evaluation between them."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayface.config import Config
from rayface.data.images import augment
from rayface.data.plan import SamplePlan
from rayface.data.stream import Batch, FaultCounter
from rayface.evaluation.export import save_model
from rayface.evaluation.protocols import PairSet, embed_images, evaluate_pairs, load_pairs
from rayface.evaluation.verification import roc, thinned
from rayface.tracking import Journal
from rayface.tracking.journal import CHECKPOINT_FAULTS, RECOVERY
from rayface.training import checkpoint, interrupt
from rayface.training.checkpoint_writer import CheckpointWriter
from rayface.training.distributed import World, agreed, autocast, average_buffers, fast_bf16, gather_rows, use_cores
from rayface.training.meter import Meter
from rayface.training.optim import build_optimizer
from rayface.training.parts import build_config_backbone, build_config_head, data_parallel
from rayface.training.restarts import restarts
from rayface.training.schedules import build_schedule

OUTCOME = "outcome.json"  # written last: the workers are done; the driver makes result.json of it


class TrainingStoppedError(RuntimeError):
    """A run that cannot go on; the message is for the user, one line."""


class Training:
    """One worker's share of a run, from the first step or from a checkpoint to the model on disk.

    Args:
        config: the resolved config.
        run: the run directory, seen by all workers.
        world: this worker's place.
        plan: which sample is in which step.
        num_classes: of the joint label space.
        dataset_facts: name, digest and licence of the training data, for the model's card.
        known_faults: damaged samples found when the dataset was opened.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        world: World,
        plan: SamplePlan,
        *,
        num_classes: int,
        dataset_facts: dict[str, str],
        known_faults: tuple[Any, ...] = (),
    ) -> None:
        use_cores(world)
        self.config, self.run, self.world, self.plan = config, run, world, plan
        self.dataset_facts = dataset_facts
        self.total_steps = max(1, round(config.train.epochs * plan.steps_per_epoch))
        self.bf16 = {"fp32": False, "bf16": True, "auto": fast_bf16(world.device)}[config.train.precision]
        torch.manual_seed(config.train.seed)
        backbone = build_config_backbone(config)
        self.backbone = backbone.to(world.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = build_config_head(config, num_classes, world)
        self.optimizer = build_optimizer(
            config.optim.name,
            self.backbone,
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )
        self.schedule = build_schedule(
            **vars(config.schedule),
            optimizer=self.optimizer,
            total_steps=self.total_steps,
            steps_per_epoch=plan.steps_per_epoch,
        )
        self.journal = Journal(run / "journal" / "rank0.jsonl") if world.rank == 0 else None
        self.checkpoints = CheckpointWriter(run, keep=config.train.keep_checkpoints)
        self.accuracy: float | None = None  # of the last evaluation; known to rank 0
        self.step = self._restore()
        self.checkpoints.reserve(self._state())
        self.forward = data_parallel(self.backbone, world)
        self.faults = FaultCounter(plan.num_samples, config.data.max_corrupt_fraction, known_faults)
        self.pairs = _load_pairs(config)
        self._meter = Meter(self.step)
        self._last_evaluation: dict[str, Any] = {}
        self.loss = math.nan
        self.restarts = restarts(run)
        if self.restarts:
            reason = f"{self.restarts[-1]}: workers were started again, {world.size} of them"
            self._tell(f"{reason}; training goes on from step {self.step} (restart {len(self.restarts)})")

    def fit(self, batches_from: Callable[[int], Iterator[Batch]]) -> None:
        """Train up to the last step, then evaluate and save the model.

        Args:
            batches_from: step to this rank's batches from there on.
        """
        every = self.config.evaluate.every
        if self.step == 0:
            self.evaluate()
        self._meter.restart(self.step)
        for batch in self._meter.waiting_for(batches_from(self.step)):
            loss = self.train_step(batch)
            self.step = batch.step + 1
            last = self.step == self.total_steps
            self._log(loss, last)
            if every and self.step % every == 0 and not last:
                self.evaluate()
                self._meter.restart(self.step)
            stop = not last and self._asked_to_stop()
            if last or stop or self.step % self._checkpoint_every() == 0:
                self.save_checkpoint()
            if stop:
                self.checkpoints.wait()
                if self.world.rank == 0:
                    interrupt.clear(self.run)
                return
        if self.step < self.total_steps:
            raise RuntimeError(f"the stream ended at step {self.step} of {self.total_steps}")
        self.finish()

    def train_step(self, batch: Batch) -> float:
        """One step on this rank's part of the global batch; the mean loss over the global batch, before it."""
        self._note_faults(batch)
        images, labels = self._prepare(batch)
        self.head.prefetch(labels)
        with autocast(self.world.device, self.bf16):
            embeddings = self.forward(images)
        loss = self._loss(embeddings.float(), labels, batch.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), self.config.optim.clip_norm or math.inf)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._stopped(f"the loss of step {batch.step} is {value}", bad_from=batch.step)
        if not math.isfinite(norm):
            raise self._stopped(f"the gradient of step {batch.step} is not finite", bad_from=batch.step + 1)
        self.optimizer.step()
        self.head.step(self.optimizer.param_groups[0]["lr"])
        self.schedule.step(value)
        return value

    def evaluate(self) -> None:
        """Verification accuracy on the pairs, the images shared among the ranks."""
        if self.pairs is None:
            return
        average_buffers(self.backbone, self.world)
        n, world = len(self.pairs.images), self.world
        bounds = [rank * n // world.size for rank in range(world.size + 1)]
        own = embed_images(
            self.backbone,
            self.pairs.images[bounds[world.rank] : bounds[world.rank + 1]],
            batch_size=self.config.evaluate.batch_size,
            device=world.device,
            amp="bf16" if self.bf16 else None,
        )
        counts = [last - first for first, last in pairwise(bounds)]
        embeddings = gather_rows(torch.from_numpy(own).to(world.device), counts, world).cpu().numpy()
        if self.journal is None:
            return
        result = evaluate_pairs(embeddings, self.pairs)
        far, tar, _ = roc(embeddings[self.pairs.a], embeddings[self.pairs.b], self.pairs.is_same)
        self._last_evaluation, self.accuracy = result, result["accuracy_mean"]
        self.journal.metrics({"eval/accuracy": result["accuracy_mean"]}, self.step)
        _write_json(self.run / "evaluation.json", {**result, "step": self.step, "roc": thinned(far, tar)})

    def save_checkpoint(self) -> None:
        """Copy the whole state and begin to write it; every rank must call it."""
        average_buffers(self.backbone, self.world)
        progress = {
            "step": self.step,
            "total_steps": self.total_steps,
            "batch_size": self.plan.batch_size,
            "accuracy": self.accuracy,
            "dataset": self.dataset_facts,
            "schedule": self.schedule.state_dict(),
            "head": {k: v for k, v in self.head.state().items() if not isinstance(v, torch.Tensor)},
        }
        self.checkpoints.save(self._state(), progress)
        self._meter.restart(self.step)

    def finish(self) -> None:
        """Evaluate and write the model and the result of the run."""
        self.evaluate()
        self.checkpoints.wait()
        if self.journal is None:
            return
        save_model(
            self.run,
            self.backbone,
            name=self.config.backbone.name,
            backbone_args={"width": self.config.backbone.width},
            image_size=self.config.data.image_size,
            embedding_size=self.config.backbone.embedding_size,
            licence=self.dataset_facts["licence"],
            training_digest=self.dataset_facts["digest"],
            metrics=self._last_evaluation,
        )
        outcome = {
            "steps": self.step,
            "faults": self.faults.num_lost,
            "loss": self.loss if math.isfinite(self.loss) else None,  # None: resumed after the last step
            **self._last_evaluation,
        }
        _write_json(self.run / OUTCOME, outcome)
        self.journal.close()

    def _restore(self) -> int:
        """Load the newest checkpoint that is whole, if there is one; the step to go on from."""
        saved, faults = self.checkpoints.newest_whole()
        if faults and self.journal is not None:
            self.journal.tags({CHECKPOINT_FAULTS: "; ".join(faults)})
        if saved is None:
            return 0
        optimizer = checkpoint.empty_like_saved(saved, "optimizer.")
        progress = checkpoint.load(saved, {**self._state(with_optimizer=False), **optimizer})
        checkpoint.load_optimizer_state(self.optimizer, optimizer)
        self.head.load_state({**self.head.state(), **progress["head"]})
        self.schedule.load_state_dict(progress["schedule"])
        self.accuracy = progress["accuracy"]
        return int(progress["step"])

    def _state(self, *, with_optimizer: bool = True) -> checkpoint.State:
        state = {f"backbone.{k}": v for k, v in self.backbone.state_dict().items()}
        first, _, num_classes = self.head.row_range
        for key, rows in self.head.state().items():
            if isinstance(rows, torch.Tensor):
                state[f"head.{key}"] = checkpoint.RowShard.of(rows, first, num_classes)
        return {**state, **(checkpoint.optimizer_state(self.optimizer) if with_optimizer else {})}

    def _prepare(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images and labels on the device; all randomness of a step is a function of (seed, step)."""
        data, device = self.config.data, self.world.device
        seeds = np.random.SeedSequence([self.config.train.seed, batch.step]).generate_state(2, np.uint64)
        torch.manual_seed(int(seeds[0] >> 1) + self.world.rank)  # dropout
        images = augment(
            batch.images.to(device, non_blocking=True),
            batch.rows,
            self.plan.batch_size,
            torch.Generator().manual_seed(int(seeds[1] >> 1)),
            flip=data.flip,
            shift=data.shift,
            brightness=data.brightness,
            contrast=data.contrast,
            saturation=data.saturation,
        )
        return images.contiguous(memory_format=torch.channels_last), batch.labels.to(device, non_blocking=True)

    def _log(self, loss: float, last: bool) -> None:
        self.loss = loss
        if self.journal is None or not (last or self.step % self.config.train.log_every == 0):
            return
        steps_per_second, waiting = self._meter.read(self.step)
        self.journal.metrics(
            {
                "train/loss": loss,
                "train/lr": self.optimizer.param_groups[0]["lr"],
                "train/epoch": self.step / self.plan.steps_per_epoch,
                "train/images_per_second": steps_per_second * self.plan.batch_size,
                "train/waiting_for_data": waiting,
                "train/restarts": len(self.restarts),
                "data/faults": self.faults.num_lost,
                **{f"train/{key}": value for key, value in self.schedule.metrics().items()},
            },
            self.step,
        )

    def _tell(self, text: str) -> None:
        """Say on the terminal, in MLflow and in faults.log why training did not go straight on."""
        if self.journal is None:
            return
        self.journal.tags({RECOVERY: text})
        with (self.run / "faults.log").open("a") as file:
            file.write(f"{text}\n")

    def _note_faults(self, batch: Batch) -> None:
        new = self.faults.add(batch.faults)
        if new and self.journal is not None:
            with (self.run / "faults.log").open("a") as file:
                file.writelines(f"{fault}\n" for fault in new)

    def _loss(self, embeddings: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        try:
            loss: torch.Tensor = self.head.loss(embeddings, labels)
            return loss
        except ValueError as error:  # NaN embeddings, on every rank at once
            raise self._stopped(f"step {step}: {error}", bad_from=step) from error

    def _stopped(self, reason: str, *, bad_from: int) -> TrainingStoppedError:
        """What to raise on every rank; checkpoints of step `bad_from` and later hold the damage and are set aside."""
        with contextlib.suppress(RuntimeError):  # the reason to stop is what the user has to read
            self.checkpoints.wait()
        good = checkpoint.set_aside(self.run, bad_from, rename=self.world.rank == 0)
        way_on = (
            f"the last good checkpoint is {good[-1]}; go on from it with --resume and"
            if good
            else "there is no good checkpoint yet; start again with"
        )
        return TrainingStoppedError(
            f"{reason}; {way_on} a lower optim.lr (now {self.config.optim.lr:g}) or train.precision=fp32"
        )

    def _asked_to_stop(self) -> bool:
        """Rank 0 looks, all ranks answer alike."""
        if self.step % self.config.train.log_every:
            return False
        return agreed(self.world.rank == 0 and interrupt.requested(self.run), self.world)

    def _checkpoint_every(self) -> int:
        return self.config.train.checkpoint_every or self.plan.steps_per_epoch


def _load_pairs(config: Config) -> PairSet | None:
    if config.evaluate.pairs is None or config.evaluate.data is None:
        return None
    return load_pairs(config.evaluate.pairs, config.evaluate.data, image_size=config.data.image_size)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
