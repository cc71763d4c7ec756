"""The function that Ray Train runs on every worker: its place, its stream, its share of the training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.collective import broadcast_from_rank_zero

from rayface import config as configs
from rayface.config import Config
from rayface.data.plan import SamplePlan
from rayface.data.shared_samples import SharedSamples
from rayface.data.stream import Batch, train_batches
from rayface.data.windows import executions, split_streams
from rayface.training.distributed import World
from rayface.training.loop import Training
from rayface.training.preflight import preflight


def train_worker(job: dict[str, Any]) -> None:
    """Run the job that the driver describes; returns when the model is on disk."""
    context = ray.train.get_context()
    config, plan = configs.from_dict(job["config"]), job["plan"]
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        local_size=context.get_local_world_size(),
        device=ray.train.torch.get_device(),
    )
    found = (
        preflight(world, Path(job["run"]), job["shards"], job["shape"], node=ray.util.get_node_ip_address())
        if world.size > 1
        else {}
    )
    training = Training(
        config,
        Path(job["run"]),
        world,
        plan,
        num_classes=job["num_classes"],
        dataset_facts=job["facts"],
        known_faults=job["faults"],
    )
    if training.journal is not None:
        training.journal.tags(found)

    def batches_from(step: int) -> Iterator[Batch]:
        span = {"start": step, "stop": training.total_steps}
        streams = _streams(config, job["samples"], plan, world, held_cpus=job["held_cpus"], **span)
        return train_batches(streams, plan, rank=world.rank, world_size=world.size, **span)

    training.fit(batches_from)


def _streams(
    config: Config, samples: SharedSamples, plan: SamplePlan, world: World, *, held_cpus: float, start: int, stop: int
) -> Iterator[tuple[int, Any]]:
    """This rank's share of each Ray Data execution; rank 0 starts them and deals them out."""
    gpus = int(world.device.type == "cuda")
    for first, last in executions(plan, start, stop):
        streams = None
        if world.rank == 0:
            streams = split_streams(
                samples,
                plan,
                image_size=config.data.image_size,
                world_size=world.size,
                first_window=first,
                last_window=last,
                readers=config.data.readers,
                reserved={
                    "CPU": world.size * config.train.cpus_per_worker + held_cpus,
                    "GPU": float(world.size * gpus),
                },
            )
        yield first, broadcast_from_rank_zero(streams)[world.rank]
