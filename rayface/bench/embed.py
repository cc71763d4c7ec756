"""Benchmark of an embedding actor: reading, decoding and writing, against the model alone."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayface import machine
from rayface.config import EmbedConfig
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.images import normalize
from rayface.embedding.embedder import default_batch
from rayface.embedding.shard_embedder import EmbedJob, ShardEmbedder, ShardWork, read_images, shard_work
from rayface.models.model_files import load_model
from rayface.progress import phase

_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class EmbedTimes:
    """Settings and measurements of an embedding actor; medians of the rounds."""

    model: str
    flip: bool
    precision: str
    images: int
    threads: int
    device: str
    bare_images_per_second: float
    """Rate of the model alone."""
    images_per_second: float
    """Rate of the actor."""
    ratio: float
    """Seconds of the model alone, relative to those of the actor."""
    ratios: list[float]
    """The ratio in each round."""

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        return asdict(self)


def bench_embed(
    settings: EmbedConfig,
    images: int = 1024,
    threads: int | None = None,
    device: str = "cpu",
) -> EmbedTimes:
    """Measure an actor's work on shards, and the model alone on the same images.

    The actor reads, decodes, normalises, embeds and writes; the model gets normalised batches from memory. Both run in
    this process on the same threads, in turn, five times; the start of Ray is not included.

    Args:
        images: number of images, from the first shards; all of them are kept decoded in memory.
        threads: threads of the model and of decoding; None: the CPUs of this process.

    Raises:
        ValueError: see `embed`.
    """
    threads = threads or machine.num_cpus()
    dataset = open_dataset(settings.data, join="separate")  # labels are not used
    work = _first(dataset, images)
    before = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder:
            actor = ShardEmbedder(settings, folder, EmbedJob.of(settings, dataset), threads, device)
            batches = _batches(work, actor.embedder.image_size, threads, device)
            bare = _bare(settings, batches, device)
            seconds = _in_turn(bare, lambda: [actor(each) for each in work])
    finally:
        torch.set_num_threads(before)
    count = sum(map(len, batches))
    ratios = (seconds[:, 0] / seconds[:, 1]).tolist()
    bare_rate, whole_rate = (count / np.median(seconds, axis=0)).tolist()
    return EmbedTimes(
        model=Path(str(settings.model)).name,
        flip=settings.flip,
        precision=settings.precision,
        images=count,
        threads=threads,
        device=device,
        bare_images_per_second=bare_rate,
        images_per_second=whole_rate,
        ratio=float(np.median(ratios)),
        ratios=ratios,
    )


def _first(dataset: Dataset, images: int) -> list[ShardWork]:
    """Return the work of the first shards, with `images` images in total."""
    work: list[ShardWork] = []
    for shard in shard_work(dataset, range(len(dataset.shards))):
        if images <= 0:
            break
        work.append(shard._replace(samples=shard.samples.select(slice(0, images))))
        images -= len(work[-1].samples)
    return work


def _batches(work: Sequence[ShardWork], image_size: int, threads: int, device: str) -> list[torch.Tensor]:
    """Return the decoded, normalised batches (n, 3, size, size) in [-1, 1]."""
    decoded = [c.images for each in work for c in read_images(each.path, each.samples, image_size, threads)]
    size = default_batch(device)
    parts = (images[start : start + size] for images in decoded for start in range(0, len(images), size))
    return [normalize(torch.from_numpy(part).to(device)) for part in parts]


def _bare(settings: EmbedConfig, batches: Sequence[torch.Tensor], device: str) -> Callable[[], Any]:
    """Return a function that runs only the model's forward passes."""
    loaded = load_model(str(settings.model), backbone=settings.backbone, device=device)
    module = loaded.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cast = settings.precision == "bf16"

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=cast):
            for batch in batches:
                module(batch)
                if settings.flip:
                    module(batch.flip(3))
        if device == "cuda":
            torch.cuda.synchronize()

    return bare


def _in_turn(bare: Callable[[], Any], whole: Callable[[], Any]) -> NDArray[np.float64]:
    """Return the seconds (rounds, 2) of both, in alternating order, after a round to warm up."""
    seconds = np.zeros((_ROUNDS + 1, 2))
    with phase("measure rounds", parts=_ROUNDS + 1) as current:
        for number in range(_ROUNDS + 1):
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                (bare, whole)[which]()
                seconds[number, which] = time.perf_counter() - start
            current.advance()
    return seconds[1:]
