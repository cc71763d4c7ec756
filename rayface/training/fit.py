"""Run the workers under Ray Train: start, restart and interrupt them."""

import uuid
from functools import partial

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig

from rayface.data.streaming.shared_samples import SharedSamples, share
from rayface.interrupts import terminable
from rayface.models.run_files import all_in
from rayface.plan.memory import job_of
from rayface.plugins import resume_command
from rayface.session import started_here
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.controller import ProcessGroupConfig
from rayface.training.ray_trainer import Trainer
from rayface.training.recovery.interrupt import TrainingInterruptedError, run_interruptibly
from rayface.training.recovery.nccl_hangs import NcclHangs, reports_nccl_hangs
from rayface.training.recovery.supervisor import Supervisor, cause_of
from rayface.training.recovery.watchdog import has_stepped
from rayface.training.resources import uses_gpu, worker_resources
from rayface.training.run_directory import RunDirectory
from rayface.training.timeouts import collective_seconds
from rayface.training.validate import ValidRun
from rayface.training.worker import WorkerJob, train_worker

_RESIZE_SECONDS = 60.0  # interval at which Ray Train checks for room for more workers


def fit(run: RunDirectory, valid: ValidRun, *, held_cpus: float) -> None:
    """Run workers until training is done; restart them whenever they drained a node that is about to be removed.

    Args:
        held_cpus: CPUs reserved by concurrent runs; data readers must leave them free.

    Raises:
        TrainingStoppedError, CheckpointError, ValueError: the run cannot continue; one line.
        TrainingInterruptedError: Ctrl-C, SIGTERM or a sweep stopped it, after a checkpoint; one line.
    """
    samples = share(valid.dataset, grouped=valid.sample_order.needs_groups, cache_size=valid.config.data.cache_size)

    def run_workers() -> None:
        _trainer(run, valid, samples, held_cpus).fit()
        while run.clear_drain_request() and not run.stop_requested() and not run.has_outcome():
            _trainer(run, valid, samples, held_cpus).fit()

    train = valid.config.train

    def stepped() -> bool:
        return not train.hang_timeout or has_stepped(run)  # without a watchdog there are no heartbeats

    run.clear_restarts()
    run.clear_heartbeats()
    try:
        with terminable():
            run_interruptibly(run_workers, run, train.grace_seconds, stepped)
    except ray.train.TrainingFailedError as error:
        raise cause_of(error, run) from error
    except KeyboardInterrupt as error:
        raise interrupted(run, error) from error
    if not run.has_outcome():  # a sweep requested the stop
        raise interrupted(run, KeyboardInterrupt())


def _trainer(run: RunDirectory, valid: ValidRun, samples: SharedSamples, held_cpus: float) -> Trainer:
    config, dataset = valid.config, valid.dataset
    gpu = uses_gpu(config)
    mirrored = valid.total_steps > config.train.mirror_every > 0
    job = WorkerJob(
        config=config,
        run=run,
        dataset=DatasetFacts(name=dataset.name, digest=dataset.digest, licence=dataset.about.licence),
        num_classes=dataset.num_classes,
        samples=samples,
        sample_order=valid.sample_order,
        total_steps=valid.total_steps,
        known_faults=dataset.faults,
        local=started_here(),
        held_cpus=held_cpus,
        first_shard=dataset.shards[0].path,
        shape=job_of(config, dataset.num_classes, gpu=gpu),
        mirrored=mirrored,
    )
    return Trainer(
        partial(train_worker, job),  # as an argument: Ray shows a train_loop_config on its dashboard
        scaling_config=ScalingConfig(
            num_workers=config.train.num_workers,
            use_gpu=gpu,
            resources_per_worker=worker_resources(config),
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        torch_config=ProcessGroupConfig(timeout_s=collective_seconds(config.train.hang_timeout)),
        # Ray Train would resume a run of a known name; a new name makes the workers resume from our checkpoints.
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=str(run.ray_storage),
            # No limit: the supervisor decides how long a worker group that finds no room is retried.
            failure_config=FailureConfig(max_failures=config.train.max_failures, controller_failure_limit=-1),
            callbacks=[
                Supervisor(run, config.train, mirrored=mirrored),
                *([NcclHangs(run, config.train.hang_timeout)] if reports_nccl_hangs(config.train, gpu=gpu) else []),
            ],
        ),
    )


def interrupted(run: RunDirectory, cause: KeyboardInterrupt) -> TrainingInterruptedError:
    """Return the error to show for an interrupt of a run that has begun; it says how to resume the run."""
    saved = all_in(run.path)
    where = f"the last checkpoint is {saved[-1]}" if saved else "no checkpoint was saved yet"
    again = resume_command("train", "--resume", f"train.output={run}")
    return TrainingInterruptedError(f"interrupted; {where}; resume with: {again}", cause)
