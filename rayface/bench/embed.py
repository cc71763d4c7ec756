"""What reading, decoding and writing cost an embedding actor, beside the model alone."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayface import machine
from rayface.config import EmbedConfig
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.images import normalize
from rayface.embedding.shard_embedder import EmbedJob, ShardEmbedder, ShardWork, read_images, shard_work
from rayface.models.model_files import load_model
from rayface.progress import phase

_ROUNDS = 5
_BATCH = 256


def bench_embed(
    settings: EmbedConfig,
    images: int = 1024,
    threads: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure an actor's work on shards, and the bare model on the same images.

    The actor reads, decodes, normalises, embeds and writes; the model has its batches ready, normalised, in memory.
    Both in this process on the same threads, in turn, five times; Ray's start is not in it.

    Args:
        images: so many of the first shards, or all there are; they are kept decoded.
        threads: of the model, and to decode beside it; None: the CPUs of this process.

    Returns:
        settings, "images", "threads"; medians of the rounds: "bare_images_per_second", "images_per_second" and "ratio"
        of the two; "ratios" of all rounds.

    Raises:
        ValueError: as of `embed`.
    """
    threads = threads or machine.num_cpus()
    dataset = open_dataset(settings.data, join="separate")  # labels are not looked at
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
    return {
        "model": Path(str(settings.model)).name,
        "flip": settings.flip,
        "precision": settings.precision,
        "images": count,
        "threads": threads,
        "device": device,
        "bare_images_per_second": bare_rate,
        "images_per_second": whole_rate,
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
    }


def _first(dataset: Dataset, images: int) -> list[ShardWork]:
    """The first shards, the last one cut, with so many images."""
    work: list[ShardWork] = []
    for shard in shard_work(dataset, range(len(dataset.shards))):
        if images <= 0:
            break
        work.append(shard._replace(samples=shard.samples.select(slice(0, images))))
        images -= len(work[-1].samples)
    return work


def _batches(work: Sequence[ShardWork], image_size: int, threads: int, device: str) -> list[torch.Tensor]:
    """What the model is given, (n, 3, size, size) in [-1, 1]."""
    decoded = [c.images for each in work for c in read_images(each.path, each.samples, image_size, threads)]
    return [normalize(torch.from_numpy(part).to(device)) for images in decoded for part in _parts(images)]


def _parts(images: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def _bare(settings: EmbedConfig, batches: Sequence[torch.Tensor], device: str) -> Callable[[], Any]:
    """The model's forward passes and nothing else."""
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
    """Seconds (rounds, 2) of both, each first in every other round; a round before warms up."""
    seconds = np.zeros((_ROUNDS + 1, 2))
    with phase("measure rounds", parts=_ROUNDS + 1) as current:
        for number in range(_ROUNDS + 1):
            for which in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                (bare, whole)[which]()
                seconds[number, which] = time.perf_counter() - start
            current.advance()
    return seconds[1:]
