"""The driver's side of a training run: claim a run directory, start the workers, follow them, gather the results."""

import contextlib
import logging
import math
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from rayface import config as configs
from rayface import report, tracking
from rayface.config import Config
from rayface.data.classes import described
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.streaming.micro_batches import check_pieces, micro_batches
from rayface.data.streaming.sample_order import SampleOrder, order_samples
from rayface.data.streaming.shared_samples import SharedSamples, share
from rayface.evaluation.pairs import load_pairs
from rayface.heads import head_class
from rayface.heads.from_config import build_config_margin
from rayface.interrupts import terminable
from rayface.plan.memory import job_of
from rayface.plan.preflight import check_fits, check_host_fits, memory_per_worker
from rayface.progress import phase, recorded_in, show_training
from rayface.session import is_cluster, ray_session, require_workers, takes_gpu
from rayface.storage import DataError
from rayface.tracking.journal import Status
from rayface.training.builders import build_config_backbone, load_start
from rayface.training.checkpointing import checkpoint
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distillation import check_distillation
from rayface.training.recovery.interrupt import TrainingInterruptedError, run_interruptibly
from rayface.training.recovery.placement_groups import Trainer, remove_orphaned_placement_groups
from rayface.training.recovery.resume_check import check_resumable
from rayface.training.recovery.supervisor import Supervisor, cause_of
from rayface.training.run_directory import RunDirectory
from rayface.training.run_output import check_data, check_output, exclusive_run_directory
from rayface.training.schedules import RunLength, build_schedule
from rayface.training.teacher_cache import fill_cache
from rayface.training.worker import WorkerJob, train_worker

_RESIZE_SECONDS = 60.0  # between looks for room for more workers

logger = logging.getLogger(__name__)


def train(
    config: Config,
    *,
    resume: bool = False,
    address: str | None = None,
    debug: bool = False,
    tags: Mapping[str, str] = MappingProxyType({}),
    held_cpus: float = 0.0,
) -> dict[str, Any]:
    """Train a model into a run directory.

    Args:
        config: resolved; `train.output` names the run directory, None takes a new one under runs/.
        resume: go on from the last checkpoint of the run directory.
        address: Ray cluster; None: RAY_ADDRESS, else a local Ray.
        debug: show the logs of Ray.
        tags: of the MLflow run.
        held_cpus: of the cluster, by runs at the same time; readers must not wait for these.

    Returns:
        run, model, report, tracking, steps, images_per_second, seconds (of all sessions, where it was resumed),
        faults, loss and, with pairs, the results of the evaluation and accuracy_before.

    Raises:
        ValueError: bad input; one line.
        TrainingStoppedError, CheckpointError: the run could not go on; one line.
        TrainingInterruptedError: by Ctrl-C or SIGTERM, after a checkpoint; one line.
    """
    check_settings(config)
    check_output(config, resume)
    dataset = _open_data(config, resume)
    logger.info("data %s", _data_text(dataset))
    plan = _plan(config, dataset)
    _check_backbone(config, resume)
    check_distillation(config)
    num_cpus = config.train.max_workers * config.train.cpus_per_worker
    with ray_session(address, num_cpus=num_cpus, debug=debug):
        remove_orphaned_placement_groups()  # of a run before in this process
        on_cluster = is_cluster(address)
        _check_resources(config, config.train.wait_for_nodes if on_cluster else 0.0)
        _check_memory(config, dataset.num_classes)
        with exclusive_run_directory(config, resume) as run:
            facts = _data_facts(dataset)
            check_data(run, facts)
            if resume:
                check_resumable(run, config, plan)
            fill_cache(config, dataset)
            # From here on the run is one of this config; until here a run that is resumed is as it was.
            run.write_data_facts(facts)
            run.write_config(config)
            return _train_in(run, config, dataset, plan, resume=resume, tags=tags, held_cpus=held_cpus)


def _open_data(config: Config, resume: bool) -> Dataset:
    data = config.data
    try:
        return open_dataset(data.train, max_corrupt_fraction=data.max_corrupt_fraction, join=data.join)
    except DataError as error:
        if not resume:
            raise
        raise DataError(f"{error}; where the data was moved, name its new place: --resume data.train=DIR") from error


def dry_run(config: Config) -> int:
    """Check what can be checked without Ray.

    Returns:
        the number of training steps.

    Raises:
        ValueError: bad input; one line.
    """
    check_settings(config)
    dataset = _open_data(config, False)
    return _num_steps(config, _plan(config, dataset))


def _num_steps(config: Config, plan: SampleOrder) -> int:
    return max(1, round(config.train.epochs * plan.steps_per_epoch))


def _train_in(
    run: RunDirectory,
    config: Config,
    dataset: Dataset,
    plan: SampleOrder,
    *,
    resume: bool,
    tags: Mapping[str, str],
    held_cpus: float,
) -> dict[str, Any]:
    if not resume:
        run.write_faults(dataset.faults)
    with run.session() as seconds, _tracked(config, run, dataset, tags) as tracked:
        with phase("train"), show_training(run.path, run.worker_journal_file, _num_steps(config, plan)):
            _fit(config, run, dataset, share(dataset), plan, held_cpus)
        with phase("write report"):
            result = _gather(run, dataset, seconds=seconds())
        for path, folder in run.artifacts():
            tracked.journal.artifact(path, folder)
    return {**result, "tracking": tracked.uri, "tracking_delivered": tracked.delivered}


def _data_facts(dataset: Dataset) -> dict[str, Any]:
    facts = {"digest": dataset.digest, "num_images": len(dataset.index), "num_classes": dataset.num_classes}
    return {**facts, "join": dataset.join}


def check_settings(config: Config) -> None:
    """Refuse what can be seen to be wrong without opening the training data.

    Raises:
        ValueError: one line.
    """
    train, data = config.train, config.data
    if not data.train:
        raise ValueError("data.train: is not set: must be a dataset directory, for example data.train=faces")
    check_pieces(train)
    _check_static_graph(config)
    head_class(config.head.name)
    build_config_margin(config.head)
    if config.tracking.enabled and config.tracking.uri is not None:
        tracking.tracking_uri(config.tracking, Path())
    if (config.evaluate.pairs is None) != (not config.evaluate.data):
        raise ValueError("evaluate.pairs: needs evaluate.data beside it, the dataset that holds the named members")
    for path in (config.evaluate.pairs, *config.evaluate.data):
        if path is not None and "://" not in path and not Path(path).exists():
            raise ValueError(f"evaluate: {path}: does not exist: give the path of the pairs csv and of its dataset")
    if config.evaluate.pairs and config.evaluate.data:
        # Once here, where its errors reach the user before a worker starts.
        load_pairs(config.evaluate.pairs, config.evaluate.data, image_size=16)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    build_schedule(config.schedule, optimizer, RunLength(total_steps=1, steps_per_epoch=1))


def _check_static_graph(config: Config) -> None:
    """PyTorch stops with an internal error where the first gradients of a static graph are not averaged at once."""
    train = config.train
    if not train.static_graph:
        return
    counts = range(train.min_workers, train.max_workers + 1)
    pieces = max(len(micro_batches(train.batch_size, 0, n, train.max_batch_per_worker)) for n in counts)
    if pieces > 1 and train.resize == "accumulate":
        raise ValueError(
            f"train.static_graph: true: a step is {pieces} pieces that are added up, which it does not go with: leave "
            "it out, or raise train.max_batch_per_worker"
        )
    if config.backbone.compile:
        raise ValueError("train.static_graph: true: does not go with backbone.compile: choose one of them")


def _check_backbone(config: Config, resume: bool) -> None:
    """Build it, without memory unless it starts from weights: what cannot be is found before workers start."""
    if config.backbone.weights is not None and not resume:
        load_start(build_config_backbone(config), config)
        return
    with torch.device("meta"):
        build_config_backbone(config)


def _check_resources(config: Config, wait: float) -> None:
    """Wait for the nodes that the workers need."""
    train = config.train
    require_workers(train.device, train.cpus_per_worker, train.min_workers, wait=wait)


def _check_memory(config: Config, num_classes: int) -> None:
    """Refuse what cannot fit, as seen from where a worker would be: the driver's machine may be another kind."""
    gpu = uses_gpu(config)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU" if gpu else "CPU", 0) > 0]
    share = -(-config.train.max_workers // max(1, len(nodes)))
    here = [node["NodeID"] for node in nodes] == [ray.get_runtime_context().get_node_id()]

    def available(gpu_memory: bool) -> int | None:
        if here:
            return memory_per_worker(gpu=gpu_memory, workers_per_machine=share)
        # "DEFAULT": anywhere. A trial of a sweep would else keep the task in its own placement group, without a CPU.
        where = {"num_cpus": config.train.cpus_per_worker, "num_gpus": int(gpu), "scheduling_strategy": "DEFAULT"}
        place = ray.remote(**where)(memory_per_worker)
        found: int | None = ray.get(place.remote(gpu=gpu_memory, workers_per_machine=share))
        return found

    if (on_device := available(gpu)) is not None:
        check_fits(config, num_classes, on_device, gpu=gpu)
    if gpu and (on_host := available(False)) is not None:
        check_host_fits(config, num_classes, on_host)


def uses_gpu(config: Config) -> bool:
    """Whether each worker takes a GPU; to be asked where Ray is."""
    return takes_gpu(config.train.device)


def _plan(config: Config, dataset: Dataset) -> SampleOrder:
    return order_samples(
        dataset,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        chunk_images=config.data.chunk_images,
        window_images=config.data.window_images,
    )


@dataclass(kw_only=True)
class _Tracked:
    journal: tracking.Journal
    uri: str | None = None
    delivered: bool | None = None


@contextlib.contextmanager
def _tracked(config: Config, run: RunDirectory, dataset: Dataset, tags: Mapping[str, str]) -> Iterator[_Tracked]:
    """The driver's journal of a run; whatever happens inside, the run's end is told and waited for."""
    delivery = tracking.start(config.tracking, run.path, tags) if config.tracking.enabled else None
    journal = run.journal("driver")
    tracked = _Tracked(journal=journal, uri=delivery.uri if delivery else None)
    journal.params(configs.flat(config, configs.TRAINING))
    journal.params({"dataset.name": dataset.name, "dataset.digest": dataset.digest})
    journal.params({"dataset.num_classes": dataset.num_classes, "dataset.num_images": len(dataset.index)})
    journal.params({"dataset.num_classes_with_images": dataset.num_classes_with_images})
    journal.artifact(run.config_file)
    journal.tags({"git_commit": _git_commit(), "run_directory": str(run)})
    status: Status = "FAILED"
    try:
        with recorded_in(journal):
            yield tracked
        status = "FINISHED"
    except (KeyboardInterrupt, TrainingInterruptedError):
        status = "KILLED"
        raise
    finally:
        journal.finish(status)
        journal.close()
        if delivery is not None:
            tracked.delivered = delivery.close(config.tracking.timeout)


def _git_commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _fit(
    config: Config, run: RunDirectory, dataset: Dataset, samples: SharedSamples, plan: SampleOrder, held_cpus: float
) -> None:
    """Run workers until they are done; once more whenever they have left a node before it was taken away."""

    def fit() -> None:
        _trainer(config, run, dataset, samples, plan, held_cpus).fit()
        while run.clear_drain_request() and not run.stop_requested() and not run.has_outcome():
            _trainer(config, run, dataset, samples, plan, held_cpus).fit()

    run.clear_restarts()
    try:
        with terminable():
            run_interruptibly(fit, run, config.train.grace_seconds)
    except ray.train.TrainingFailedError as error:
        raise cause_of(error, run) from error
    except KeyboardInterrupt as error:
        raise _interrupted(run, error) from error
    if not run.has_outcome():  # a sweep put the request to stop into the run directory
        raise _interrupted(run, KeyboardInterrupt())


def _trainer(
    config: Config, run: RunDirectory, dataset: Dataset, samples: SharedSamples, plan: SampleOrder, held_cpus: float
) -> Trainer:
    gpu = uses_gpu(config)
    resources = {"CPU": float(config.train.cpus_per_worker), **({"GPU": 1.0} if gpu else {})}
    job = WorkerJob(
        config=config,
        run=run,
        dataset=DatasetFacts(name=dataset.name, digest=dataset.digest, licence=dataset.about.licence),
        num_classes=dataset.num_classes,
        samples=samples,
        plan=plan,
        known_faults=dataset.faults,
        held_cpus=held_cpus,
        first_shard=dataset.shards[0].path,
        shape=job_of(config, dataset.num_classes, gpu=gpu),
    )
    return Trainer(
        partial(train_worker, job),  # as an argument: Ray shows a train_loop_config on its dashboard
        scaling_config=ScalingConfig(
            num_workers=config.train.num_workers,
            use_gpu=gpu,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        torch_config=TorchConfig(timeout_s=_collective_seconds(config)),
        # Ray resumes a run whose name it has seen; ours are resumed from our own checkpoints, under a new name.
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=str(run.ray_storage),
            # A group that finds no room is tried again until the supervisor says that it was long enough.
            failure_config=FailureConfig(max_failures=config.train.max_failures, controller_failure_limit=-1),
            callbacks=[Supervisor(run, config.train)],
        ),
    )


def _interrupted(run: RunDirectory, cause: KeyboardInterrupt) -> TrainingInterruptedError:
    saved = checkpoint.all_in(run.path)
    where = f"the last checkpoint is {saved[-1]}" if saved else "no checkpoint was saved yet"
    return TrainingInterruptedError(
        f"interrupted; {where}; go on with: rayface train --resume train.output={run}", cause
    )


def _collective_seconds(config: Config) -> int:
    """When a collective gives up: where watchdogs end true hangs, long after them, for ranks may wait for work."""
    return math.ceil(2 * config.train.hang_timeout) + 86_400 if config.train.hang_timeout else 1800


def _gather(run: RunDirectory, dataset: Dataset, *, seconds: float) -> dict[str, Any]:
    """Plots, report and the numbers that the run is remembered by."""
    metrics = run.read_metrics()
    result = dict(run.read_outcome())
    speeds = sorted(value for _, value, _ in metrics.get("train/images_per_second", []))
    result["images_per_second"] = speeds[len(speeds) // 2] if speeds else 0.0
    result["seconds"] = seconds
    accuracy = metrics.get("eval/accuracy")
    if accuracy:
        result["accuracy_before"] = accuracy[0][1]
    result = {"run": str(run), "model": str(run.model), "report": str(run.report), **result}
    curve = run.read_evaluation()["roc"] if accuracy else None
    report.training_report(
        run.path,
        title=run.name,
        metrics=metrics,
        table=_table(result, dataset),
        roc=(curve["far"], curve["tar"]) if curve else None,
    )
    run.write_result(result)  # last: it says that the run is finished
    return result


def _data_text(dataset: Dataset) -> str:
    counts = described(len(dataset.index), dataset.num_classes, dataset.num_classes_with_images)
    return f"{dataset.name}: {counts}"


def _table(result: dict[str, Any], dataset: Dataset) -> list[tuple[str, str]]:
    rows = [
        ("data", _data_text(dataset)),
        ("steps", f"{result['steps']:,}"),
        ("images/s", f"{result['images_per_second']:,.0f}"),
        ("seconds", f"{result['seconds']:,.0f}"),
        ("damaged samples", f"{result['faults']:,}"),
    ]
    if "accuracy_mean" in result:
        before = result["accuracy_before"]
        rows.insert(
            0, ("accuracy", f"{result['accuracy_mean']:.2%} ± {result['accuracy_std']:.2%}, before {before:.2%}")
        )
    return rows
