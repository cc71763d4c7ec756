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
from rayface.data.streaming.batches import Batch, train_batches
from rayface.data.streaming.dealer import Dealt, deal
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
        dealt = None
        if world.rank == 0:
            dealt = _deal(config, job, world, start=step, stop=training.total_steps)
        return train_batches(broadcast_from_rank_zero(dealt), world.rank)

    training.fit(batches_from)


def _deal(config: Config, job: dict[str, Any], world: World, *, start: int, stop: int) -> Dealt:
    """Start the stream of all ranks."""
    return deal(
        job["samples"],
        job["plan"],
        image_size=config.data.image_size,
        world_size=world.size,
        start=start,
        stop=stop,
        readers=config.data.readers,
        reserved={
            "CPU": world.size * config.train.cpus_per_worker + job["held_cpus"],
            "GPU": float(world.size * (world.device.type == "cuda")),
        },
    )
