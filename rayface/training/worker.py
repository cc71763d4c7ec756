"""The function that Ray Train runs on every worker: set up the process, connect to the data stream, train."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import ray
import ray.train
import ray.train.torch

from rayface.config import Config
from rayface.data.streaming.batches import Batch, Fault, train_batches
from rayface.data.streaming.dealer import Dealt, deal
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.shared_samples import SharedSamples
from rayface.models.run_files import all_in
from rayface.plan.memory import Job
from rayface.training.checkpointing.mirror_actors import ActorStores
from rayface.training.checkpointing.progress import DatasetFacts
from rayface.training.distributed import World, from_rank_0
from rayface.training.loop import Training
from rayface.training.preflight import preflight, require_driver_disk
from rayface.training.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """What the driver passes to every worker of a run."""

    config: Config
    run: RunDirectory
    """The run directory, on a disk that all workers share, or in an object store."""
    dataset: DatasetFacts
    num_classes: int
    """Size of the joint label space."""
    samples: SharedSamples
    sample_order: SampleOrder
    total_steps: int
    known_faults: Sequence[Fault]
    """Corrupt samples found when the dataset was opened."""
    local: bool
    """Whether Ray was started by the driver, for this run."""
    held_cpus: float
    """CPUs reserved by concurrent runs; data readers must leave them free."""
    first_shard: str
    """A tar that every worker must be able to read."""
    shape: Job
    """Shapes of the run, from which the pre-flight predicts what a step sends."""
    mirrored: bool
    """Whether the run has stores for mirrored states."""


def train_worker(job: WorkerJob) -> None:
    """Run one worker of a job; return when the model is on disk."""
    context = ray.train.get_context()
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        local_size=context.get_local_world_size(),
        device=ray.train.torch.get_device(),
    )
    run = replace(job.run, writer=f"rank{world.rank}")
    with run.delivering() if world.rank == 0 else nullcontext():
        _train(replace(job, run=run), world, context.get_experiment_name())


def _train(job: WorkerJob, world: World, name: str) -> None:
    node = ray.util.get_node_ip_address()
    if world.rank == 0:
        require_driver_disk(job.run, node)
    # A new run starts at step 0: the dealer starts now, beside the pre-flight, which on two cores measures lower rates
    # for it, and the building of the model. Restarted workers may take up a mirrored state, and a second stream would
    # cost them 2 s of CPU time.
    fresh = world.rank == 0 and not all_in(job.run.path) and not job.run.restarts()
    dealt = _deal(job, world, start=0) if fresh else None
    found: dict[str, str] = {}
    if world.size > 1:
        found = preflight(world, job.run, [job.first_shard], job.shape, node=node)
    dealt = from_rank_0(dealt, world)
    early = train_batches(dealt, world.rank) if dealt is not None else None
    training = Training(
        job.config,
        job.run,
        world,
        job.sample_order,
        num_classes=job.num_classes,
        dataset=job.dataset,
        known_faults=job.known_faults,
        stores=ActorStores(name) if job.mirrored else None,
    )
    training.log.tags(found)

    def batches_from(step: int) -> Iterator[Batch]:
        nonlocal early
        batches, early = early, None
        if batches is not None and step == 0:
            return batches
        return _batches(job, world, start=step)

    training.fit(batches_from)


def _batches(job: WorkerJob, world: World, *, start: int) -> Iterator[Batch]:
    """Return this rank's batches from a step on; every rank must call it."""
    dealt = from_rank_0(_deal(job, world, start=start) if world.rank == 0 else None, world)
    assert dealt is not None
    return train_batches(dealt, world.rank)


def _deal(job: WorkerJob, world: World, *, start: int) -> Dealt:
    """Start the data stream of all ranks."""
    config = job.config
    return deal(
        job.samples,
        job.sample_order,
        image_size=config.data.image_size,
        world_size=world.size,
        start=start,
        stop=job.total_steps,
        readers=config.data.readers,
        local=job.local,
        reserved={
            "CPU": world.size * config.train.cpus_per_worker + job.held_cpus,
            "GPU": float(world.size * (world.device.type == "cuda")),
        },
    )
