"""What every worker runs: one training step after the other, checkpoints and evaluation between them."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayface import config as configs
from rayface.config import Config
from rayface.credentials import masked
from rayface.data.images import augment
from rayface.data.streaming.batches import Batch, FaultCounter
from rayface.data.streaming.micro_batches import MicroBatch, micro_batches
from rayface.data.streaming.sample_order import SampleOrder
from rayface.files import write_json
from rayface.heads import NonFiniteEmbeddingsError
from rayface.models.model_files import save_model
from rayface.precision import autocast, uses_bf16
from rayface.tracking import Journal
from rayface.tracking.journal import CHECKPOINT_FAULTS, RECOVERY
from rayface.training.builders import build_config_backbone, build_config_head, data_parallel, load_start, no_grad_sync
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.state import load_state, mlflow_run_id, whole_state
from rayface.training.checkpointing.writer import CheckpointWriter
from rayface.training.distillation import build_distillation
from rayface.training.distributed import (
    World,
    average_buffers,
    broadcast_flag,
    from_rank_0,
    use_cores,
)
from rayface.training.gradient_compression import forget_errors
from rayface.training.meter import Meter
from rayface.training.optim import build_optimizer, scaled_rate
from rayface.training.recovery import interrupt
from rayface.training.recovery.restarts import clear_drain_request, drain_requested, restarts
from rayface.training.recovery.rollback import NotFiniteError, forget, remembered, stopped
from rayface.training.recovery.watchdog import Watchdog, bytes_being_written
from rayface.training.run_directory import OUTCOME
from rayface.training.schedules import build_schedule
from rayface.training.validation import Evaluation


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
        plan: SampleOrder,
        *,
        num_classes: int,
        dataset_facts: dict[str, str],
        known_faults: tuple[Any, ...] = (),
    ) -> None:
        use_cores(world)
        self.config, self.run, self.world, self.plan = config, run, world, plan
        self.dataset_facts = dataset_facts
        self.total_steps = max(1, round(config.train.epochs * plan.steps_per_epoch))
        self.bf16 = uses_bf16(config.train.precision, world.device)
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
        progress = self._restore()
        self.step = int(progress["step"]) if progress else 0
        saved = progress.get("recovery", {}) if progress else {}
        self.recovery = from_rank_0(remembered(run, saved), world)
        self.checkpoints.reserve(self._state())
        if progress is None:
            load_start(self.backbone, config)
        self.forward = data_parallel(self.backbone, world, config)
        self.distillation = build_distillation(config, plan, num_classes, world)
        self._piece = config.train.max_batch_per_worker
        self.watchdog = Watchdog(
            run, world.rank, world.size, config.train.hang_timeout, lambda: bytes_being_written(run)
        )
        self.faults = FaultCounter(plan.num_samples, config.data.max_corrupt_fraction, known_faults)
        self.faults.load_state(progress.get("faults", []) if progress else [])
        self.evaluation = Evaluation(config, run, world, bf16=self.bf16)
        self._meter = Meter(self.step)
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
        if self._done_before():
            return
        with self.watchdog:
            if self.step == 0:
                self.evaluate()
                if self.config.train.on_nan != "stop":
                    self.save_checkpoint()  # for a roll-back from the first steps
            asked = None
            while asked is None:
                try:
                    asked = self._train(batches_from(self.step))
                except NotFiniteError as error:
                    self._roll_back(error)
            if not asked:
                self.finish()

    def _done_before(self) -> bool:
        """Whether other workers have finished the run, and were replaced before anybody saw that."""
        done = self.step == self.total_steps and broadcast_flag((self.run / OUTCOME).exists(), self.world)
        if not done and self.journal is not None:
            (self.run / OUTCOME).unlink(missing_ok=True)  # of a run with fewer steps
        return done

    def _train(self, batches: Iterator[Batch]) -> bool:
        """Train on the batches to the last step; whether it was asked to stop before."""
        every = self.config.evaluate.every
        self._meter.restart(self.step)
        self.watchdog.at("start", self.step)
        for batch in self._meter.waiting_for(batches):
            self._note_faults(batch)
            trained = batch.step not in self.recovery.skipped
            if trained:
                self.loss = self.train_step(batch)
            else:
                self.schedule.step(math.nan)  # the rate of a step does not depend on what was left out before
            self.step = batch.step + 1
            last = self.step == self.total_steps
            if trained:
                self._log(last)
            if every and self.step % every == 0 and not last:
                self.evaluate()
                self._meter.restart(self.step)
            stop = not last and self._asked_to_stop()
            if last or stop or self.step % self._checkpoint_every() == 0:
                self.save_checkpoint()
            if stop:
                self.checkpoints.wait()
                if self.world.rank == 0 and interrupt.requested(self.run):
                    clear_drain_request(self.run)  # who asked to stop wants no others started
                    interrupt.clear(self.run)
                return True
            self.watchdog.at("data", self.step)
        if self.step < self.total_steps:
            raise RuntimeError(f"the stream ended at step {self.step} of {self.total_steps}")
        return False

    def train_step(self, batch: Batch) -> float:
        """One step on this rank's part of the global batch; the mean loss over the global batch, before it.

        Raises:
            NotFiniteError: on every rank alike, before anything is moved.
        """
        images, labels = self._prepare(batch)
        pieces = micro_batches(self.plan.batch_size, self.world.rank, self.world.size, self._piece)
        separate = self.config.train.resize == "rescale_lr"
        value = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for piece in pieces:
            last = piece is pieces[-1]
            with contextlib.nullcontext() if last or separate else no_grad_sync(self.forward):
                loss, embeddings = self._forward(images[piece.rows], labels[piece.rows], piece, batch.step)
                total = loss
                if self.distillation is not None:
                    total = loss + self.distillation(embeddings, images[piece.rows], batch, piece)
                self.watchdog.at("backward", batch.step, piece.number)
                total.backward(loss.new_tensor(1.0 if separate else piece.share))
            value += piece.share * float(loss.detach())
            if last or separate:
                self._update(value, batch.step, piece, piece.share if separate else 1.0)
        self.schedule.step(value)
        return value

    def _forward(
        self, images: torch.Tensor, labels: torch.Tensor, piece: MicroBatch, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The class layer's loss, and the embeddings."""
        self.watchdog.at("forward", step, piece.number)
        self.head.prefetch(labels, piece.counts)
        with autocast(self.world.device, self.bf16):
            embeddings = self.forward(images).float()
        self.watchdog.at("loss", step, piece.number)
        try:
            return self.head.loss(embeddings, labels, counts=piece.counts), embeddings
        except NonFiniteEmbeddingsError as error:  # on every rank at once
            raise NotFiniteError(f"step {step}: {error}", step=step, bad_from=step) from error

    def _update(self, value: float, step: int, piece: MicroBatch, share: float) -> None:
        """Move the weights by the gradients that have come together, and forget these."""
        self.watchdog.at("update", step, piece.number)
        norm = torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), self.config.optim.clip_norm or math.inf)
        if not math.isfinite(value):
            raise NotFiniteError(f"the loss of step {step} is {value}", step=step, bad_from=step)
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient of step {step} is not finite", step=step, bad_from=step + 1)
        lone = (
            piece.number == 0 or self.config.train.resize == "rescale_lr"
        )  # then the head moves this piece's rows only
        few = lone and self.config.head.center_update == "sparse"
        self.checkpoints.copied(self.head.last_rows() if few else None)
        with scaled_rate(self.optimizer, share * self.recovery.rate_factor):
            self.optimizer.step()
            self.head.step(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad(set_to_none=True)

    def _roll_back(self, error: NotFiniteError) -> None:
        """Go back to the last good checkpoint; every rank has met the same error.

        Raises:
            TrainingStoppedError: where that is not wanted, was done often enough, or there is none.
        """
        self.watchdog.at("start", error.step)  # loading takes its time
        train = self.config.train
        with contextlib.suppress(RuntimeError):  # the reason is what the user has to read
            self.checkpoints.wait()
        may = self.recovery.may_roll_back(train)
        # That of step 0 is the start itself, so a roll-back can always take it.
        bad_from = max(1, error.bad_from) if may else error.bad_from
        good = self.checkpoints.set_aside(bad_from)
        progress = self._restore() if may and good else None
        if progress is None:
            if self.world.rank == 0:
                forget(self.run)
            raise stopped(error, good, self.recovery.rollbacks, self.config.optim.lr) from error
        self.step = int(progress["step"])
        forget_errors(self.forward)
        what = self.recovery.change(error.step, train)
        if self.world.rank == 0:
            self.recovery.remember(self.run)
        self._tell(f"{error}: rolled back to step {self.step}, training goes on {what} ({self.recovery.rollbacks})")

    def evaluate(self) -> None:
        """Verification accuracy on the pairs, if there are any."""
        accuracy = self.evaluation.run(self.backbone, self.step, self.watchdog)
        if accuracy is not None and self.journal is not None:
            self.accuracy = accuracy
            self.journal.metrics({"eval/accuracy": accuracy}, self.step)

    def save_checkpoint(self) -> None:
        """Copy the whole state and begin to write it; every rank must call it."""
        self.watchdog.at("checkpoint", self.step)
        average_buffers(self.backbone, self.world)
        progress = {
            "step": self.step,
            "epoch": self.step / self.plan.steps_per_epoch,
            "plan": vars(self.plan),
            "total_steps": self.total_steps,
            "batch_size": self.plan.batch_size,
            "accuracy": self.accuracy,
            "dataset": self.dataset_facts,
            "schedule": self.schedule.state_dict(),
            "recovery": self.recovery.state(),
            "faults": self.faults.state(),
            "mlflow": {"run_id": mlflow_run_id(self.run), "last_step": self.journal.last_step if self.journal else -1},
            "config": masked(configs.to_dict(replace(self.config, train=replace(self.config.train, output=None)))),
            "workers": self.world.size,
            "head": self.head.values(),
        }
        self.checkpoints.save(self._state(), progress)
        self._log_checkpoint()
        self._meter.restart(self.step)

    def finish(self) -> None:
        """Evaluate and write the model and the result of the run."""
        self.evaluate()
        self.watchdog.at("checkpoint", self.step)
        self.checkpoints.wait()
        self._log_checkpoint()
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
            metrics=self.evaluation.result,
        )
        outcome = {
            "steps": self.step,
            "faults": self.faults.num_lost,
            "loss": self.loss if math.isfinite(self.loss) else None,  # None: resumed after the last step
            **self.evaluation.result,
        }
        write_json(self.run / OUTCOME, outcome)
        self.journal.close()

    def _restore(self) -> dict[str, Any] | None:
        """Load the newest checkpoint that is whole, if there is one; its progress."""
        saved, faults = self.checkpoints.newest_whole()
        if faults and self.journal is not None:
            self.journal.tags({CHECKPOINT_FAULTS: "; ".join(faults)})
        if saved is None:
            return None
        progress = load_state(saved, self.backbone, self.head, self.optimizer, self.world)
        self.schedule.load_state_dict(progress["schedule"])
        self.accuracy = progress["accuracy"]
        return progress

    def _state(self) -> checkpoint.State:
        return whole_state(self.backbone, self.head, self.optimizer, self.world)

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

    def _log(self, last: bool) -> None:
        if self.journal is None or not (last or self.step % self.config.train.log_every == 0):
            return
        steps_per_second, waiting = self._meter.read(self.step)
        self.journal.metrics(
            {
                "train/loss": self.loss,
                "train/lr": self.optimizer.param_groups[0]["lr"] * self.recovery.rate_factor,
                "train/epoch": self.step / self.plan.steps_per_epoch,
                "train/images_per_second": steps_per_second * self.plan.batch_size,
                "train/waiting_for_data": waiting,
                "train/restarts": len(self.restarts),
                "train/rollbacks": self.recovery.rollbacks,
                "train/workers": self.world.size,
                "data/faults": self.faults.num_lost,
                **({"train/distillation": float(self.distillation.last)} if self.distillation else {}),
                **{f"train/{key}": value for key, value in self.schedule.metrics().items()},
            },
            self.step,
        )

    def _log_checkpoint(self) -> None:
        """How long the last checkpoint that is on disk took, and kept the training waiting."""
        if self.journal is not None and self.checkpoints.timing is not None:
            timing = dict(self.checkpoints.timing)
            step = int(timing.pop("step"))
            self.journal.metrics({f"checkpoint/{name}": value for name, value in timing.items()}, step)

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

    def _asked_to_stop(self) -> bool:
        """Rank 0 looks, all ranks answer alike."""
        if self.step % self.config.train.log_every:
            return False
        asked = self.world.rank == 0 and (interrupt.requested(self.run) or drain_requested(self.run))
        return broadcast_flag(asked, self.world)

    def _checkpoint_every(self) -> int:
        return self.config.train.checkpoint_every or self.plan.steps_per_epoch
