"""Training loop of every worker: steps, checkpoints, validation, roll-backs."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta

from rayface.config import Config
from rayface.data.shards.samples import Fault
from rayface.data.streaming.batches import Batch
from rayface.data.streaming.fault_counter import FaultCounter
from rayface.data.streaming.sample_order import SampleOrder
from rayface.precision import full_float32, uses_bf16
from rayface.training.builders import data_parallel
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.mirror import Mirror
from rayface.training.checkpointing.mirror_store import Stores
from rayface.training.checkpointing.progress import DatasetFacts, MlflowPosition, Progress, saved_config
from rayface.training.checkpointing.restore import newest_state
from rayface.training.checkpointing.state import load_state, whole_state
from rayface.training.checkpointing.writer import CheckpointWriter
from rayface.training.distillation import build_distillation
from rayface.training.distributed import World, broadcast_flag, from_rank_0, use_cores
from rayface.training.gradient_compression import forget_errors
from rayface.training.meter import Meter
from rayface.training.recovery.rollback import NotFiniteError, remembered, stopped
from rayface.training.recovery.stop_requests import StopRequests
from rayface.training.recovery.watchdog import Watchdog
from rayface.training.run_directory import RunDirectory
from rayface.training.run_log import RunLog
from rayface.training.schedules import RunLength, build_schedule
from rayface.training.system_metrics import SystemMetrics
from rayface.training.timeouts import collective_seconds
from rayface.training.train_step import TrainStep
from rayface.training.trained import build_trained
from rayface.training.validation import Evaluation


class Training:
    """Training on one worker, from the first step or from a checkpoint to the model on disk.

    Args:
        config: the resolved config.
        run: the run directory, on a disk that all workers share, or in an object store.
        world: rank, number of workers and device.
        sample_order: which samples are in which step.
        num_classes: size of the joint label space.
        dataset: the training data, for the model card.
        known_faults: corrupt samples found when the dataset was opened.
        stores: for mirrored states (train.mirror_every); None: there are none.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        world: World,
        sample_order: SampleOrder,
        *,
        num_classes: int,
        dataset: DatasetFacts,
        known_faults: Sequence[Fault] = (),
        stores: Stores | None = None,
    ) -> None:
        use_cores(world)
        self.config, self.run, self.world, self.sample_order, self.dataset = config, run, world, sample_order, dataset
        self.total_steps = sample_order.total_steps(config.train.epochs)
        self.bf16 = uses_bf16(config.train.precision, world.device)
        self.trained = build_trained(config, num_classes, world)
        self.backbone, self.head, self.optimizer = self.trained.backbone, self.trained.head, self.trained.optimizer
        length = RunLength(total_steps=self.total_steps, steps_per_epoch=sample_order.steps_per_epoch)
        self.schedule = build_schedule(config.schedule, self.optimizer, length)
        self.log = RunLog(run, world)
        train, patience = config.train, timedelta(seconds=collective_seconds(config.train.hang_timeout))
        self.checkpoints = CheckpointWriter(run.path, keep=train.keep_checkpoints, timeout=patience)
        self.mirror = Mirror(world, stores, train.mirror_every, on_failure=self.log.recovery, timeout=patience)
        self.accuracy: float | None = None  # of the last validation; set on rank 0 only
        self.loss = math.nan
        saved = self._restore()
        progress = saved or Progress(step=0)
        self.step = progress.step
        self.recovery = from_rank_0(remembered(run, progress.recovery), world)
        self.checkpoints.reserve(self._state())
        if saved is None:
            self.trained.start(config)
        self.watchdog = Watchdog(run, world.rank, world.size, train.hang_timeout, run.bytes_being_written)
        self.train_step = self._build_step(num_classes)
        self.faults = FaultCounter(sample_order.num_samples, config.data.max_corrupt_fraction, known_faults)
        self.faults.load_state(progress.faults)
        self.evaluation = Evaluation(config, run, world, bf16=self.bf16)
        self._meter = Meter(self.step)
        self._system = SystemMetrics(run.working)
        self._report_restarts()

    def _build_step(self, num_classes: int) -> TrainStep:
        return TrainStep(
            config=self.config,
            world=self.world,
            batch_size=self.sample_order.batch_size,
            bf16=self.bf16,
            trained=self.trained,
            forward=data_parallel(self.backbone, self.world, self.config),
            distillation=build_distillation(self.config, self.sample_order, num_classes, self.world),
            watchdog=self.watchdog,
            before_update=(self.checkpoints.wait_until_copied, self.mirror.wait_until_copied),
        )

    def fit(self, batches_from: Callable[[int], Iterator[Batch]]) -> None:
        """Train up to the last step, then evaluate and save the model.

        Args:
            batches_from: returns this rank's batches from a given step on.
        """
        if self._done_before():
            return
        with nullcontext() if self.bf16 else full_float32(self.world.device), self.watchdog, self.log.phases():
            # Requested now: until the first batch has been read, the untrained model is evaluated.
            batches: Iterator[Batch] | None = batches_from(self.step)
            if self.step == 0:
                self.evaluate()
                if self.config.train.on_nan != "stop":
                    self.save_checkpoint()  # target of a roll-back in the first steps
            finished: bool | None = None
            while finished is None:
                try:
                    finished = self._train(batches or batches_from(self.step))
                except NotFiniteError as error:
                    batches = None
                    self._roll_back(error)
            self.mirror.wait()  # it uses a process group, which no rank may leave before
            if finished:
                self.finish()

    def _done_before(self) -> bool:
        """Return whether earlier workers finished the run and were replaced before the driver noticed."""
        done = self.step == self.total_steps and broadcast_flag(self.run.has_outcome(), self.world)
        if not done and self.world.rank == 0:
            self.run.delete_outcome()  # written by an earlier session with fewer steps
        return done

    def _train(self, batches: Iterator[Batch]) -> bool:
        """Train to the last step; return False if a stop or drain was requested before it."""
        config = self.config
        stops = StopRequests(self.run, self.world, config.train)
        self._meter.restart(self.step)
        self.watchdog.at("start", self.step)
        for batch in self._meter.waiting_for(batches):
            self.log.corrupt_samples(self.faults.add(batch.faults))
            trained = batch.step not in self.recovery.skipped
            last = batch.step + 1 == self.total_steps
            logged = trained and self.world.rank == 0 and (last or (batch.step + 1) % config.train.log_every == 0)
            if trained:
                self.loss = self.train_step.run(batch, self.recovery.rate_factor, measured=logged)
            # A skipped step still advances the schedule, so the rate of a step does not depend on earlier skips.
            self.schedule.step(self.loss if trained else math.nan)
            self.step = batch.step + 1
            if logged:
                self._log_step()
            if self._due(config.evaluate.every) and not last:
                self.evaluate()
                self._meter.restart(self.step)
            stop = not last and stops.asked()
            if last or stop or self._due(config.train.checkpoint_every or self.sample_order.steps_per_epoch):
                self.save_checkpoint()
            if not last and not stop and self.mirror.due(self.step):
                self.mirror.save(self._state(), self._progress())
            if stop:
                self.checkpoints.wait()
                stops.clear()
                return False
            if last:  # without asking the stream whether it has ended: it ends with rank 0, which may be ahead
                return True
            self.watchdog.at("data", self.step)
        if self.step < self.total_steps:
            raise RuntimeError(f"the data stream ended at step {self.step} of {self.total_steps}")
        return True

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _roll_back(self, error: NotFiniteError) -> None:
        """Return to the last good checkpoint; called on every rank, with the same error.

        Raises:
            TrainingStoppedError: train.on_nan is "stop", no roll-backs are left, or there is no good checkpoint.
        """
        self.watchdog.at("start", error.step)  # loading a checkpoint takes longer than a step
        train = self.config.train
        with suppress(RuntimeError):  # the non-finite step is the error to report, not a failed write
            self.checkpoints.wait()
        may = self.recovery.may_roll_back(train)
        # The checkpoint of step 0 holds the initial state, so it is always a valid target.
        bad_from = max(1, error.bad_from) if may else error.bad_from
        self.mirror.clear()
        good = self.checkpoints.set_aside(bad_from)
        progress = self._restore() if may and good else None
        if progress is None:
            if self.world.rank == 0:
                self.run.delete_rollbacks()
            raise stopped(error, good, self.recovery.rollbacks, self.config.optim.lr) from error
        self.step = progress.step
        forget_errors(self.train_step.forward)
        what = self.recovery.change(error.step, train)
        if self.world.rank == 0:
            self.recovery.remember(self.run)
        text = f"{error}: rolled back to step {self.step}, training continues {what} ({self.recovery.rollbacks})"
        self.log.recovery(text)

    def _report_restarts(self) -> None:
        self.restarts = self.run.restarts()
        if self.restarts:
            reason = f"{self.restarts[-1]}: {self.world.size} workers were restarted"
            self.log.recovery(f"{reason}; training continues from step {self.step} (restart {len(self.restarts)})")

    def evaluate(self) -> None:
        """Measure the model by the protocols of evaluate.protocols, if their inputs are set."""
        accuracy = self.evaluation.run(self.trained.exported[1], self.step, self.watchdog)
        if accuracy is None:
            return
        self.accuracy = accuracy if math.isfinite(accuracy) else None
        figures = {**self.evaluation.all_figures, "accuracy": accuracy, **self.evaluation.main_figures}
        self.log.metrics({f"eval/{name}": value for name, value in figures.items() if math.isfinite(value)}, self.step)

    def save_checkpoint(self) -> None:
        """Copy the training state and start writing it in the background; every rank must call it."""
        self.watchdog.at("checkpoint", self.step)
        self.trained.average_buffers(self.world)
        self.checkpoints.save(self._state(), self._progress())
        self.log.checkpoint_written(self.checkpoints.timing)
        self._meter.restart(self.step)

    def _progress(self) -> Progress:
        """Return the values that a checkpoint holds beside its tensors."""
        return Progress(
            step=self.step,
            total_steps=self.total_steps,
            epoch=self.step / self.sample_order.steps_per_epoch,
            plan=vars(self.sample_order),
            batch_size=self.sample_order.batch_size,
            accuracy=self.accuracy,
            dataset=self.dataset,
            schedule=self.schedule.state_dict(),
            recovery=self.recovery,
            faults=self.faults.state(),
            mlflow=MlflowPosition(run_id=self.run.mlflow_run_id(), last_step=self.log.last_step),
            config=saved_config(self.config),
            workers=self.world.size,
            head=self.head.values(),
            network=self.trained.exported[0],
        )

    def finish(self) -> None:
        """Run the final validation, write the model and the result of the run."""
        self.evaluate()
        self.watchdog.at("checkpoint", self.step)
        self.checkpoints.wait()
        self.log.checkpoint_written(self.checkpoints.timing)
        if self.world.rank != 0:
            return
        with self.run.new_model() as folder:
            self.trained.save(folder, self.config, self.dataset, self.evaluation.result)
        loss = self.loss if math.isfinite(self.loss) else None  # None: resumed after the last step
        outcome = {"steps": self.step, "faults": self.faults.num_lost, "loss": loss}
        self.run.write_outcome({**outcome, **self.evaluation.result})
        self.log.close()

    def _restore(self) -> Progress | None:
        """Load the newest mirrored state or valid checkpoint, if any, and return its progress."""
        saved = newest_state(self.run, self.mirror, self.checkpoints, self.log)
        if saved is None:
            return None
        progress = load_state(saved, self.trained, self.world)
        self.schedule.load_state_dict(dict(progress.schedule))
        self.accuracy = progress.accuracy
        return progress

    def _state(self) -> checkpoint.State:
        return whole_state(self.trained, self.world)

    def _log_step(self) -> None:
        steps_per_second, waiting = self._meter.read(self.step)
        distillation = self.train_step.distillation
        self.log.metrics(
            {
                "train/loss": self.loss,
                "train/lr": self.optimizer.param_groups[0]["lr"] * self.recovery.rate_factor,  # of the next step
                "train/epoch": self.step / self.sample_order.steps_per_epoch,
                "train/images_per_second": steps_per_second * self.sample_order.images_per_step,
                "train/waiting_for_data": waiting,
                "train/restarts": len(self.restarts),
                "train/rollbacks": self.recovery.rollbacks,
                "train/workers": self.world.size,
                "data/faults": self.faults.num_lost,
                **{f"train/{key}": value for key, value in self.train_step.measures.items()},
                **({"train/distillation": float(distillation.last)} if distillation else {}),
                **{f"train/{key}": value for key, value in self.schedule.metrics().items()},
                **self._system.read(),
            },
            self.step,
        )
