"""Embed a dataset: a Ray Data job whose actors hold the model and write one parquet file per shard."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray

from rayface.config import Config, EmbedConfig, TrainConfig, require_keys
from rayface.credentials import masked
from rayface.data.configured import open_configured
from rayface.data.dataset import Dataset
from rayface.data.shards.samples import Fault
from rayface.data.streaming.fault_counter import FaultCounter
from rayface.data.streaming.shared_samples import SharedSamples, share
from rayface.embedding.embeddings import JOB, MANIFEST
from rayface.embedding.shard_embedder import (
    EmbeddedShard,
    EmbedJob,
    ShardEmbedder,
    ShardPlace,
    is_repaired,
    part_name,
    read_embedded,
    shard_places,
    shard_work,
)
from rayface.job_folder import exclusive_job_folder
from rayface.machine import keep_freed_memory
from rayface.ray_tasks import map_unordered_by_actors, quiet_data
from rayface.session import is_cluster, ray_session, require_workers, started_here
from rayface.storage import DataError, join, list_names, normalise, write_bytes
from rayface.tracking.job import Tracked, tracked_job
from rayface.tracking.spool import spool
from rayface.version import VERSION

logger = logging.getLogger(__name__)
_THREADS = 16  # threads that open files and wait for the disk or the store
_VISIBLE_SECONDS = 90.0  # until a file is visible on another node: NFS caches listings for up to a minute


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """A finished embedding job.

    Attributes:
        manifest: content of embeddings.json: settings, digests, counts, parts, faults, seconds.
        tracked: tracking of the job.
    """

    manifest: Mapping[str, Any]
    tracked: Tracked

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, for --json."""
        return {**self.manifest, **self.tracked.as_dict()}


def embed(config: Config) -> EmbedResult:
    """Embed every image of a dataset into parquet files with key, label and an embedding of length 1.

    Run again after an interruption, it resumes with the missing shards. Every readable sample becomes exactly one row;
    corrupt samples are listed in the manifest. Memory of an actor: the model, and a few hundred images per CPU.

    Args:
        config: `embed`; also data.max_corrupt_fraction, data.join, train.device, train.wait_for_nodes, tracking and
            cluster.

    Raises:
        ValueError: bad input, one line; also if `embed.out` holds embeddings of another model, dataset or setting.
    """
    start = time.monotonic()
    require_keys(config, "embed.model", "embed.data", "embed.out")
    # Workers run in another directory.
    settings = replace(config.embed, model=normalise(str(config.embed.model)))
    dataset = open_configured("embed.data", settings.data, config.data)
    root = normalise(str(settings.out))
    job = EmbedJob.of(settings, dataset)
    about = {**job.facts(), "id": job.id}
    params = {**about, "model": settings.model, "data": dataset.roots, "dataset.name": dataset.name}
    with (
        exclusive_job_folder(root, about, JOB, key="embed.out"),
        spool(root) as folder,
        tracked_job(folder, config.tracking, params, output=root) as tracked,
    ):
        source, counts = ", ".join(map(str, dataset.roots)), {"num_images": dataset.num_images}
        tracked.journal.dataset(dataset.name, digest=dataset.digest, source=source, context="embedding", **counts)
        counter = FaultCounter(dataset.num_images, config.data.max_corrupt_fraction, known=dataset.faults)
        faults = list(dataset.faults)
        shards = _finished(root, job, dataset)
        for shard in shards.values():
            faults += counter.add(list(shard.faults))
        skipped = len(shards)
        work = _Work(settings=settings, dataset=dataset, root=root, job=job, device=config.train.device)
        for shard in _embedded(config, work, shards.keys()):
            if len(shards) == skipped:
                _refuse_lost(root, [shard.number])  # check after the first shard, not after hours
            shards[shard.number] = shard
            faults += counter.add(list(shard.faults))
        _refuse_lost(root, list(shards))
        _check_counts(dataset, shards)
        seconds = time.monotonic() - start
        manifest = _manifest(work, shards, faults, parts_skipped=skipped, seconds=seconds)
        write_bytes(join(root, MANIFEST), (json.dumps(masked(manifest), indent=1) + "\n").encode())
        numbers = {"num_rows": manifest["num_rows"], "num_faults": len(faults), "seconds": seconds}
        tracked.journal.metrics(numbers, step=0)
    return EmbedResult(manifest=manifest, tracked=tracked.result())


def _embedded(config: Config, work: _Work, done: Collection[int]) -> Iterator[EmbeddedShard]:
    """Embed the remaining shards on Ray."""
    missing = [number for number in range(len(work.dataset.shards)) if number not in done]
    if not missing:
        return
    cluster = config.cluster
    session = ray_session(cluster.address, debug=cluster.debug, prometheus=config.tracking.prometheus)
    with session, quiet_data(cluster.debug):
        if is_cluster(cluster.address):
            _wait_for_nodes(config.train, min(work.settings.workers or 1, len(missing)))
        yield from work.embedded(missing)


def _finished(root: str, job: EmbedJob, dataset: Dataset) -> dict[int, EmbeddedShard]:
    """Return the shards that are already embedded, but for those whose corrupt images were repaired since."""
    names = set(list_names(root))
    there = [number for number in range(len(dataset.shards)) if part_name(number) in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = {
            shard.number: shard for shard in pool.map(lambda number: read_embedded(root, number, dataset, job), there)
        }
    for work in shard_work(dataset, [number for number, shard in found.items() if shard.faults]):
        if is_repaired(work, found[work.number].faults, job.image_size):
            del found[work.number]
    return found


def _refuse_lost(root: str, numbers: Sequence[int]) -> None:
    """Raise DataError if files that workers have written are not visible in the folder."""
    names = {part_name(number) for number in numbers}
    until = time.monotonic() + _VISIBLE_SECONDS
    while lost := sorted(names - set(list_names(root))):
        if time.monotonic() >= until:
            raise DataError(
                f"embed.out: {root}: {len(lost)} of {len(names)} files that workers wrote are missing ({lost[0]}): "
                "must be a folder that all nodes share, or a URI"
            )
        time.sleep(1)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Embedding of the remaining shards on the cluster."""

    settings: EmbedConfig
    dataset: Dataset
    root: str
    job: EmbedJob
    device: str

    def embedded(self, missing: Sequence[int]) -> Iterator[EmbeddedShard]:
        """Embed shards, in any order."""
        gpu, room, cpus = find_room(self.device)
        actors = max(1, min(self.settings.workers or room, len(missing)))
        if not gpu:
            cpus = max(1, room // actors)  # with few shards, several CPUs per actor
        most = actors if started_here() or self.settings.workers else len(missing)
        if most > actors:
            logger.info(
                "embedding with %d workers, and more on nodes that join (embed.workers waits for a number)", actors
            )
        load = partial(
            ShardEmbedder,
            settings=self.settings,
            root=self.root,
            job=self.job,
            threads=cpus,
            device="cuda" if gpu else "cpu",
        )
        places = list(shard_places(self.dataset, missing))
        yield from map_unordered_by_actors(
            _SharedIndexEmbedder,
            {"samples": share(self.dataset), "load": load},
            places,
            "embed shards",
            rows=sum(self.dataset.shards[number].num_images for number in missing),
            actors=actors,
            most_actors=most,
            num_cpus=cpus,
            num_gpus=int(gpu),
            count_rows=True,
        )


class _SharedIndexEmbedder:
    """An actor's work on shards whose samples are in the object store, one copy on each node."""

    def __init__(
        self,
        samples: SharedSamples,
        load: Callable[..., ShardEmbedder],
        count: Callable[[int], None] = lambda rows: None,
    ) -> None:
        keep_freed_memory()
        self._index = samples.get()[1]
        self._embedder = load(count=count)

    def __call__(self, place: ShardPlace) -> EmbeddedShard:
        return self._embedder(place.work(self._index))


def _wait_for_nodes(train: TrainConfig, workers: int) -> None:
    """Wait for nodes, which an autoscaling cluster adds on request."""
    require_workers(train.device, 1.0, workers, wait=train.wait_for_nodes, setting="embed.workers")


def find_room(device: str) -> tuple[bool, int, int]:
    """Return whether to use GPUs, the number of actors that fit (one per GPU, else per CPU), and the CPUs of each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" and not gpus:
        raise ValueError("train.device: cuda: the cluster has no GPU: leave it out")
    if gpus and device != "cpu":
        return True, sum(count for count, _ in gpus), max(1, min(cpus // count for count, cpus in gpus))
    return False, max(1, int(sum(node.get("CPU", 0) for node in nodes))), 1


def _check_counts(dataset: Dataset, shards: Mapping[int, EmbeddedShard]) -> None:
    """Compare the rows and faults of every shard with the dataset's index."""
    for number, shard in enumerate(dataset.shards):
        rows, faults = shards[number].rows, len(shards[number].faults)
        if rows + faults != shard.num_images:
            raise RuntimeError(f"{shard.path}: {rows} rows and {faults} faults of {shard.num_images} samples")


def _manifest(
    work: _Work, shards: Mapping[int, EmbeddedShard], faults: Sequence[Fault], *, parts_skipped: int, seconds: float
) -> dict[str, Any]:
    dataset = work.dataset
    return {
        **work.job.facts(),
        **({"weights_sha256": work.job.weights_sha256} if work.job.weights_sha256 else {}),
        "model": str(work.settings.model),
        "data": list(dataset.roots),
        "num_classes": dataset.num_classes,
        "num_rows": sum(shard.rows for shard in shards.values()),
        "parts": [
            {"path": part_name(number), "num_rows": shards[number].rows, "shard": shard.path}
            for number, shard in enumerate(dataset.shards)
        ],
        "faults": [str(fault) for fault in faults],
        "created_by": f"rayface {VERSION}",
        "parts_skipped": parts_skipped,
        "seconds": seconds,
    }
