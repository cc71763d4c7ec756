"""What reading, decoding and writing cost an embedding actor, beside the model alone."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayface import machine
from rayface.curate.embed import EmbedSettings, ShardEmbedder, job_of, read_images, shard_work
from rayface.data.shards import open_dataset

_REPEATS = 3


def bench_embed(
    settings: EmbedSettings, data: Sequence[str], images: int = 4096, threads: int | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Measure an actor's work on whole shards, and the model alone on the same images, decoded beforehand.

    Both in this process on the same threads, in turn, three times; the best of each counts. Ray's start is not in it.

    Args:
        images: at least so many, in whole shards, or all there are; they are kept decoded.
        threads: of the model, and to decode beside it; None: the CPUs of this process.

    Returns:
        settings, "images", "threads", "bare_images_per_second", "images_per_second" (read, decode, embed, write) and
        "ratio" of the two.

    Raises:
        ValueError: as of `embed`.
    """
    threads = threads or machine.num_cpus()
    dataset = open_dataset(data)
    counts = np.cumsum([shard.num_images for shard in dataset.shards])
    shards = [shard_work(dataset, k) for k in range(min(int(np.searchsorted(counts, images)) + 1, len(counts)))]
    before = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory() as folder:
            actor = ShardEmbedder(settings, folder, job_of(settings, dataset), threads, device)
            size = actor.embedder.image_size
            decoded = [c.images for work in shards for c in read_images(work.path, work.samples, size, threads)]
            actor.embedder(decoded[0])
            seconds = []
            for _ in range(_REPEATS):
                marks = [time.perf_counter()]
                for batch in decoded:
                    actor.embedder(batch)
                marks.append(time.perf_counter())
                for work in shards:
                    actor(work)
                marks.append(time.perf_counter())
                seconds.append(np.diff(marks))
    finally:
        torch.set_num_threads(before)
    count = sum(map(len, decoded))
    bare, whole = (count / np.min(seconds, axis=0)).tolist()
    return {
        "model": Path(settings.model).name,
        "flip": settings.flip,
        "precision": settings.precision,
        "images": count,
        "threads": threads,
        "device": device,
        "bare_images_per_second": bare,
        "images_per_second": whole,
        "ratio": whole / bare,
    }
