"""Driver of a training run: validate, own the run directory, run the workers, collect the results."""

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from rayface import config as configs
from rayface.config import Config
from rayface.data.dataset import Dataset
from rayface.progress import phase, show_training
from rayface.session import ray_session
from rayface.storage import path_of
from rayface.tracking import Journal
from rayface.tracking.job import tracked_job
from rayface.training.doctor.history import RunHistory
from rayface.training.doctor.live import advised
from rayface.training.live_report import reported
from rayface.training.recovery.interrupt import TrainingInterruptedError
from rayface.training.results import TrainResult, write_results
from rayface.training.run_directory import RunDirectory
from rayface.training.run_output import exclusive_run_directory
from rayface.training.run_results import TEACHER
from rayface.training.teacher_cache import fill_cache
from rayface.training.validate import ValidRun, open_run

_START_SECONDS = 10.0  # in which the workers start, and need the CPUs


def train(
    config: Config,
    *,
    resume: bool = False,
    address: str | None = None,
    debug: bool = False,
    tags: Mapping[str, str] = MappingProxyType({}),
    held_cpus: float = 0.0,
) -> TrainResult:
    """Train a model into a run directory.

    Args:
        config: resolved config; `train.output` names the run directory, None creates a new one under runs/.
        resume: resume from the last checkpoint of the run directory.
        address: Ray cluster; None: RAY_ADDRESS, else a local Ray.
        debug: show the logs of Ray.
        tags: tags of the MLflow run.
        held_cpus: CPUs reserved by concurrent runs; data readers must leave them free.

    Raises:
        ValueError: bad input; one line.
        TrainingStoppedError, CheckpointError: the run cannot continue; one line.
        TrainingInterruptedError: Ctrl-C or SIGTERM stopped it, after a checkpoint; one line.
    """
    valid = open_run(config, resume=resume)
    num_cpus = config.train.max_workers * config.train.cpus_per_worker
    session = ray_session(address, num_cpus=num_cpus, debug=debug, prometheus=config.tracking.prometheus)
    with _preparing(valid) as wait, session:
        wait()
        # Imported now: they need PyTorch, which was imported while Ray started.
        from rayface.training.model_check import check_model
        from rayface.training.recovery.placement_groups import remove_orphaned_placement_groups
        from rayface.training.resources import require_resources

        check_model(valid)
        remove_orphaned_placement_groups()  # left by an earlier run in this process
        require_resources(config, valid.dataset.num_classes, address)
        with exclusive_run_directory(config, resume) as run:
            fill_cache(config, valid.dataset)
            _begin(run, valid)
            return _train_in(run, valid, tags=tags, held_cpus=held_cpus)


def train_or_resume(config: Config, **options: Any) -> Mapping[str, Any]:
    """Start the run of `train.output`, resume it, or return its result if it is finished: safe to repeat.

    Args:
        options: those of `train`, without `resume`.

    Returns:
        The values of `TrainResult.as_dict`; of a finished run, those of its result.json.

    Raises:
        ValueError, TrainingStoppedError, CheckpointError, TrainingInterruptedError: see `train`.
    """
    if config.train.output is None:
        raise ValueError("train.output: is not set: a repeated call finds its run by it")
    run = RunDirectory(path_of(config.train.output))
    if run.is_finished():
        return run.read_result()
    return train(config, resume=run.has_started(), **options).as_dict()


@contextmanager
def _preparing(valid: ValidRun) -> Iterator[Callable[[], None]]:
    """Import PyTorch and estimate the backbone's memory in a thread, and yield what waits for it."""
    thread = threading.Thread(target=_prepare, args=(valid,))
    thread.start()
    try:
        yield thread.join
    finally:
        thread.join()


def _prepare(valid: ValidRun) -> None:
    """Do what takes long and does not need Ray, which must not be imported here: another thread imports from it."""
    with contextlib.suppress(Exception):  # the check of the run does it again, and will say it
        for name in ("rayface.training.model_check", "rayface.plan.preflight"):
            importlib.import_module(name)
        import torch

        from rayface.plan.memory import job_of

        gpu = valid.config.train.device != "cpu" and torch.cuda.is_available()
        job_of(valid.config, valid.dataset.num_classes, gpu=gpu)


def _begin(run: RunDirectory, valid: ValidRun) -> None:
    """Write the config into the run directory; a resumed run is unchanged up to here."""
    from rayface.training.distillation import teacher_digest  # needs PyTorch

    teacher = teacher_digest(valid.config)
    run.write_data_facts(asdict(valid.data_facts) | ({} if teacher is None else {TEACHER: teacher}))
    run.write_config(valid.config)
    if not valid.resume:
        run.write_faults(valid.dataset.faults)


def _train_in(run: RunDirectory, valid: ValidRun, *, tags: Mapping[str, str], held_cpus: float) -> TrainResult:
    from rayface.training.fit import fit

    interrupts = (KeyboardInterrupt, TrainingInterruptedError)
    tracked = tracked_job(
        run.working,
        valid.config.tracking,
        _params(valid),
        tags=tags,
        interrupts=interrupts,
        deliver_after=_START_SECONDS,
        output=str(run),
        name=run.title,
    )
    with run.delivering(), run.session() as seconds, tracked as job, _resumable(run):
        job.journal.artifact(run.config_file)
        _log_dataset(job.journal, valid.dataset)
        job.journal.tags({"run_directory": str(run)})
        with (
            phase("train", shown=False),
            show_training(run.working, run.worker_journal_file, valid.total_steps),
            advised(run, _untrained(valid), job.journal),
            reported(run),
        ):
            fit(run, valid, held_cpus=held_cpus)
        with phase("write report"):
            result = write_results(run, valid.dataset, seconds=seconds())
        for path, folder in run.artifacts():
            job.journal.artifact(path, folder)
        job.journal.model(run.model_folder())
    return replace(result, **job.result().as_dict())


@contextmanager
def _resumable(run: RunDirectory) -> Iterator[None]:
    """Say how to resume the run after an interrupt before or after its training, as `fit` does during it."""
    from rayface.training.fit import interrupted

    try:
        yield
    except KeyboardInterrupt as error:
        raise interrupted(run, error) from error


def _untrained(valid: ValidRun) -> RunHistory:
    dataset = valid.dataset
    return RunHistory(
        config=valid.config,
        num_classes=dataset.num_classes,
        steps_per_epoch=valid.sample_order.steps_per_epoch,
        classes_with_images=dataset.num_classes_with_images,
    )


def _log_dataset(journal: Journal, dataset: Dataset) -> None:
    source = ", ".join(map(str, dataset.roots))
    counts = {"num_images": len(dataset.index), "num_classes": dataset.num_classes}
    journal.dataset(dataset.name, digest=dataset.digest, source=source, context="training", **counts)


def _params(valid: ValidRun) -> dict[str, object]:
    dataset = valid.dataset
    return {
        **configs.flat(valid.config, configs.TRAINING),
        "dataset.name": dataset.name,
        "dataset.digest": dataset.digest,
        "dataset.num_classes": dataset.num_classes,
        "dataset.num_images": len(dataset.index),
        "dataset.num_classes_with_images": dataset.num_classes_with_images,
    }
