"""Embed a dataset: a Ray Data job whose actors hold the model, one parquet file for each shard."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray

import rayface
from rayface.arrays import Ints
from rayface.config import Config, EmbedConfig, TrainConfig, require_keys
from rayface.credentials import masked
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.members import IMAGE_SUFFIXES
from rayface.data.shards.random_access import locate_member, read_samples
from rayface.data.shards.samples import Fault, SampleIndex, ShardRows
from rayface.data.streaming.batches import FaultCounter
from rayface.embedding.embedder import load_embedder
from rayface.embedding.embeddings import JOB, MANIFEST, part_note, write_part
from rayface.job_folder import exclusive_job_folder
from rayface.ray_tasks import map_unordered_by_actors, quiet_data
from rayface.session import is_cluster, ray_session, require_workers
from rayface.storage import DataError, join, list_names, normalise, on_disk, write_bytes
from rayface.tracking.job import tracked_job
from rayface.tracking.spool import spool

_THREADS = 16  # that open files; each waits for the disk or the store
_VISIBLE_SECONDS = 90.0  # until a file is seen on another node: NFS keeps listings for up to a minute
CHUNK = 512  # images read and decoded at a time, and the rows of a row group


def embed(config: Config) -> dict[str, Any]:
    """Embed every image of a dataset into parquet files with key, label and an embedding of length 1.

    Run again after an interruption it resumes with the shards that are missing. Every readable sample becomes exactly
    one row, those that are damaged are named in the manifest. Memory of an actor: the model, and a few hundred images
    for each of its CPUs.

    Args:
        config: `embed`; of others data.max_corrupt_fraction, data.join, train.device, train.wait_for_nodes, tracking
            and cluster.

    Returns:
        the manifest, embeddings.json: settings, digests, counts, parts, faults, seconds.

    Raises:
        ValueError: bad input, one line; also if `embed.out` holds embeddings of another model, dataset or setting.
    """
    start = time.monotonic()
    require_keys(config, "embed.model", "embed.data", "embed.out")
    model = on_disk(str(config.embed.model), "embed.model").absolute()  # workers run in another directory
    settings, cluster = replace(config.embed, model=str(model)), config.cluster
    limit = config.data.max_corrupt_fraction
    dataset = open_dataset(settings.data, max_corrupt_fraction=limit, join=config.data.join)
    root = normalise(str(settings.out))
    job = job_of(settings, dataset)
    params = {**job, "model": settings.model, "data": dataset.roots, "dataset.name": dataset.name}
    with (
        exclusive_job_folder(root, job, JOB),
        spool(root) as folder,
        tracked_job(folder, config.tracking, params) as tracked,
    ):
        parts = _finished(root, job, dataset)
        counter = FaultCounter(dataset.num_images, limit, known=dataset.faults)
        faults = list(dataset.faults)
        for note in parts.values():
            faults += counter.add([Fault(**fault) for fault in note["faults"]])
        missing = [number for number in range(len(dataset.shards)) if number not in parts]
        with ray_session(cluster.address, debug=cluster.debug), quiet_data(cluster.debug):
            if missing and is_cluster(cluster.address):
                _wait_for_nodes(config.train, min(settings.workers or 1, len(missing)))
            work = _Work(settings=settings, dataset=dataset, root=root, job=job, device=config.train.device)
            for done in work.embedded(missing):
                if len(parts) == len(dataset.shards) - len(missing):
                    _refuse_lost(root, [done["part"]])  # after the first shard, not after hours
                parts[done["part"]] = done
                faults += counter.add([Fault(**fault) for fault in done["faults"]])
        _refuse_lost(root, list(parts))
        facts = {"parts_skipped": len(dataset.shards) - len(missing), "seconds": time.monotonic() - start}
        manifest = _finish(root, job, settings, dataset, parts, faults, facts)
        numbers = {"num_rows": manifest["num_rows"], "num_faults": len(faults), "seconds": facts["seconds"]}
        tracked.journal.metrics(numbers, step=0)
    return {**manifest, "tracking": tracked.uri, "tracking_delivered": tracked.delivered}


def job_of(settings: EmbedConfig, dataset: Dataset) -> dict[str, Any]:
    """What must be the same for a part to count: the model, the data, and how."""
    embedder = load_embedder(str(settings.model), backbone=settings.backbone)
    facts = {
        "model_sha256": embedder.digest,
        "dataset_digest": dataset.digest,
        "embedding_size": embedder.embedding_size,
        "image_size": embedder.image_size,
        "flip": settings.flip,
        "precision": settings.precision,
        "dtype": settings.dtype,
    }
    if any(dataset.key_prefixes):  # made of names of shards and directories, which the dataset's digest leaves out
        facts["key_prefixes"] = hashlib.sha256("\n".join(dataset.key_prefixes).encode()).hexdigest()
    return {**facts, "id": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def _part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _finished(root: str, job: dict[str, Any], dataset: Dataset) -> dict[int, dict[str, Any]]:
    """Return the notes of the shards that are embedded."""
    names = set(list_names(root))
    there = [number for number in range(len(dataset.shards)) if _part_name(number) in names]

    def note_of(number: int) -> dict[str, Any]:
        path, shard = join(root, _part_name(number)), dataset.shards[number]
        rows, note = part_note(path)
        if rows + len(note["faults"]) != shard.num_images or note["job"] != job["id"]:
            raise DataError(f"{path}: is not of {shard.path}: delete it and run again")
        return {"part": number, "rows": rows, "faults": note["faults"]}

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(there, pool.map(note_of, there), strict=True))


def _refuse_lost(root: str, numbers: Sequence[int]) -> None:
    """Raise DataError where files that workers say they wrote do not appear in the folder."""
    names = {_part_name(number) for number in numbers}
    until = time.monotonic() + _VISIBLE_SECONDS
    while lost := sorted(names - set(list_names(root))):
        if time.monotonic() >= until:
            raise DataError(
                f"embed.out: {root}: {len(lost)} of {len(names)} files that workers wrote are not there ({lost[0]}): "
                "must be a folder that all nodes share, or a URI"
            )
        time.sleep(1)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The shards that are left, on the cluster."""

    settings: EmbedConfig
    dataset: Dataset
    root: str
    job: dict[str, Any]
    device: str

    def embedded(self, missing: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Embed shards; yield for each its part, rows and faults."""
        gpu, places, cpus = find_room(self.device)
        actors = max(1, min(self.settings.workers or places, len(missing)))
        if not gpu:
            cpus = max(1, places // actors)  # few shards: several CPUs for each
        arguments = {
            "settings": self.settings,
            "root": self.root,
            "job": self.job,
            "threads": cpus,
            "device": "cuda" if gpu else "cpu",
        }
        work = list(shard_work(self.dataset, missing))
        yield from map_unordered_by_actors(
            ShardEmbedder,
            arguments,
            work,
            "embed shards",
            rows=sum(len(shard.samples) for shard in work),
            actors=actors,
            num_cpus=cpus,
            num_gpus=int(gpu),
        )


def _wait_for_nodes(train: TrainConfig, workers: int) -> None:
    """Ask for nodes: those of a cluster come and go with the work."""
    require_workers(train.device, 1.0, workers, wait=train.wait_for_nodes, setting="embed.workers")


def find_room(device: str) -> tuple[bool, int, int]:
    """Whether to use GPUs, how many actors find room (one a GPU, else one a CPU), and the CPUs of each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU", 0) >= 1]
    if device == "cuda" and not gpus:
        raise ValueError("train.device: cuda: the cluster has no GPU: leave it out")
    if gpus and device != "cpu":
        return True, sum(count for count, _ in gpus), max(1, min(cpus // count for count, cpus in gpus))
    return False, max(1, int(sum(node.get("CPU", 0) for node in nodes))), 1


class ShardWork(NamedTuple):
    """A shard to embed; `samples` count only this one, `key_prefix` makes its keys those of the dataset."""

    number: int
    path: str
    samples: SampleIndex
    key_prefix: str


def shard_work(dataset: Dataset, numbers: Iterable[int]) -> Iterator[ShardWork]:
    """Yield the work of shards by their numbers, after one pass over the index."""
    rows = ShardRows(dataset.index.shard, len(dataset.shards))
    for number in numbers:
        samples = dataset.index.select(rows[number])
        samples = replace(samples, shard=np.zeros_like(samples.shard))
        yield ShardWork(number, dataset.shards[number].path, samples, dataset.key_prefixes[number])


class ShardEmbedder:
    """An actor's work: hold the model, embed one shard after another."""

    def __init__(self, settings: EmbedConfig, root: str, job: dict[str, Any], threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.root, self.job, self.threads, self.dtype = root, job, threads, settings.dtype
        self.embedder = load_embedder(
            str(settings.model),
            backbone=settings.backbone,
            device=device,
            flip=settings.flip,
            precision=settings.precision,
        )
        if self.embedder.digest != job["model_sha256"]:
            raise ValueError(
                f"model {settings.model}: is another one on a node of the cluster: put it on a shared disk"
            )

    def __call__(self, work: ShardWork) -> dict[str, Any]:
        note: dict[str, Any] = {"job": self.job["id"], "faults": []}

        def embedded() -> Iterator[tuple[list[str], Ints, NDArray[np.float32]]]:
            for chunk in read_images(work.path, work.samples, self.embedder.image_size, self.threads):
                note["faults"] += [asdict(fault) for fault in chunk.faults]
                if chunk.keys:
                    keys = [work.key_prefix + key for key in chunk.keys]
                    yield keys, chunk.labels, self.embedder(chunk.images)

        path = join(self.root, _part_name(work.number))
        rows = write_part(path, embedded(), size=self.embedder.embedding_size, dtype=self.dtype, note=note)
        return {"part": work.number, "rows": rows, "faults": note["faults"]}


class Chunk(NamedTuple):
    """Neighbours of a shard, read and decoded; `faults` of those that cannot be, which are left out."""

    keys: list[str]  # as the shard has them
    labels: Ints  # (n,)
    images: NDArray[np.uint8]  # (n, size, size, 3) RGB
    faults: list[Fault]


def read_images(shard: str, samples: SampleIndex, image_size: int, threads: int) -> Iterator[Chunk]:
    """Read and decode samples of a shard in their order, by threads that keep a chunk each ahead of the caller."""
    waiting: deque[Future[Chunk]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(samples), CHUNK):
            part = samples.select(slice(start, start + CHUNK))
            waiting.append(pool.submit(_read_chunk, shard, part, image_size))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_chunk(shard: str, samples: SampleIndex, image_size: int) -> Chunk:
    found = read_samples([shard], samples)
    images, bad = decode_images([b"" if isinstance(s, Fault) else s.jpeg for s in found], image_size)
    keys, rows, faults = [], [], []
    for row, sample in enumerate(found):
        if isinstance(sample, Fault):
            faults.append(sample)
        elif row in bad:
            member, offset = locate_member(shard, sample.offset, sample.num_bytes, IMAGE_SUFFIXES)
            faults.append(Fault(shard=shard, member=member, offset=offset, reason=bad[row]))
        else:
            keys.append(sample.key)
            rows.append(row)
    labels = samples.label[rows].astype(np.int64)
    return Chunk(keys, labels, images if len(rows) == len(images) else images[rows], faults)


def _finish(
    root: str,
    job: dict[str, Any],
    settings: EmbedConfig,
    dataset: Dataset,
    parts: dict[int, dict[str, Any]],
    faults: list[Fault],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Hold the counts against the dataset's index and write the manifest."""
    for number, shard in enumerate(dataset.shards):
        part = parts[number]
        if part["rows"] + len(part["faults"]) != shard.num_images:
            raise RuntimeError(
                f"{shard.path}: {part['rows']} rows and {len(part['faults'])} faults of {shard.num_images} samples"
            )
    manifest = {
        **{key: value for key, value in job.items() if key != "id"},
        "model": str(settings.model),
        "data": list(dataset.roots),
        "num_classes": dataset.num_classes,
        "num_rows": sum(part["rows"] for part in parts.values()),
        "parts": [
            {"path": _part_name(number), "num_rows": parts[number]["rows"], "shard": shard.path}
            for number, shard in enumerate(dataset.shards)
        ],
        "faults": [str(fault) for fault in faults],
        "created_by": f"rayface {rayface.__version__}",
        **facts,
    }
    write_bytes(join(root, MANIFEST), (json.dumps(masked(manifest), indent=1) + "\n").encode())
    return manifest
