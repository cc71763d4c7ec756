"""What a whole prune job takes on this machine, stage by stage, and its memory."""

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rayface import config as configs
from rayface import machine
from rayface.bench.nms import WEBFACE42M_FACES
from rayface.bench.process_tree import peak_bytes, ray_workers
from rayface.config import Config
from rayface.curate.identities import check_keep
from rayface.curate.prune.core_set import prune
from rayface.curate.prune.result import PruneResult
from rayface.embedding.part_file import write_part
from rayface.session import ray_session

CORES = 64
_SERIAL = "write"  # the stage that one process does for all
_FILE_ROWS, _BATCH_ROWS = 40_000, 4_096
_WARM_FACES = 2_000
_LOOK_SECONDS = 0.2


def _config(embeddings: Path, **settings: float) -> Config:
    """The config of a prune job that is logged nowhere, into a folder beside its embeddings."""
    own = {f"prune.{name}": value for name, value in settings.items()}
    paths = {"prune.embeddings": str(embeddings), "prune.out": f"{embeddings}_out"}
    return configs.load(overrides={**own, **paths, "tracking.enabled": False})


def bench_prune(
    faces: int = 200_000,
    identities: int = 10_000,
    embedding_size: int = 512,
    keep: float = 0.6,
    block_bytes: int = 64 * 2**20,
    largest: int = 0,
    cpus: int | None = None,
    *,
    directory: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run `core_set.prune` on drawn, unordered fp16 embeddings, on a local Ray, and look at its processes.

    Args:
        block_bytes: as prune.block_size.
        largest: images of one further identity; the others are of about the same size.
        cpus: of the local Ray; None: all.
        directory: on the disk to measure.

    Returns:
        settings as given; "embedding_bytes", "files", "kept", "threshold"; "stage_seconds" and their sum "seconds";
        "projected_hours_42m_64_cores" of WebFace42M's images by stage, if the disk keeps up; on Linux "driver_bytes"
        and "task_bytes": memory that the job adds at the peak to the driver and to the largest worker.

    Raises:
        ValueError: counts that cannot be.
    """
    _check(faces, identities, embedding_size, largest, keep)
    cpus = cpus or machine.num_cpus()
    with tempfile.TemporaryDirectory(dir=directory) as folder, ray_session(num_cpus=cpus, exact=True):
        root = Path(folder)
        _draw_files(root / "warm", _WARM_FACES, max(1, identities * _WARM_FACES // faces), embedding_size, 0, seed)
        prune(_config(root / "warm", keep=keep, block_size=max(1, _WARM_FACES * embedding_size // cpus), seed=seed))
        _draw_files(root / "all", faces, identities, embedding_size, largest, seed)
        with _peaks() as peaks:
            found = prune(_config(root / "all", keep=keep, block_size=block_bytes, seed=seed))
        files = len(list((root / "all").iterdir()))
    return {
        "faces": faces,
        "identities": found.counts.identities,
        "embedding_size": embedding_size,
        "keep": keep,
        "block_bytes": block_bytes,
        "largest": largest,
        "cpus": cpus,
        "files": files,
        "embedding_bytes": 2 * faces * embedding_size,
        **(_figures(found, faces, cpus) | peaks),
    }


def _figures(found: PruneResult, faces: int, cpus: int) -> dict[str, object]:
    seconds = found.stage_seconds
    return {
        "threshold": found.threshold,
        "kept": found.keep,
        "stage_seconds": seconds,
        "seconds": sum(seconds.values()),
        "projected_hours_42m_64_cores": _projected(seconds, faces, cpus),
    }


def _check(faces: int, identities: int, embedding_size: int, largest: int, keep: float) -> None:
    check_keep(keep)
    if faces < 1 or identities < 1 or embedding_size < 1 or not 0 <= largest <= faces:
        raise ValueError(
            f"faces {faces}, identities {identities}, embedding size {embedding_size}: must be at least 1; largest "
            f"{largest}: from 0 to all faces"
        )


def _projected(seconds: Mapping[str, float], faces: int, cpus: int) -> dict[str, float]:
    """Hours of WebFace42M's images on 64 cores, by stage; what one process does takes as long there."""
    scale = WEBFACE42M_FACES / faces / 3600
    return {stage: scale * value * (1 if stage == _SERIAL else cpus / CORES) for stage, value in seconds.items()}


def _draw_files(folder: Path, faces: int, identities: int, embedding_size: int, largest: int, seed: int) -> None:
    """Write drawn faces in no order into parquet files, one of the identities with `largest` of them."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    centers = random.standard_normal((identities + (largest > 0), embedding_size), np.float32)
    labels = np.r_[random.integers(identities, size=faces - largest), np.full(largest, identities)]
    random.shuffle(labels)

    def batches(first: int, last: int) -> Iterator[tuple[list[str], Any, Any]]:
        for start in range(first, last, _BATCH_ROWS):
            own = labels[start : min(start + _BATCH_ROWS, last)]
            vectors = random.standard_normal((len(own), embedding_size), np.float32)
            vectors *= random.uniform(0.4, 1.2, (len(own), 1)).astype(np.float32)
            vectors += centers[own]
            yield [f"{row:09d}" for row in range(start, start + len(own))], own, vectors

    for number, first in enumerate(range(0, faces, _FILE_ROWS)):
        rows = batches(first, min(first + _FILE_ROWS, faces))
        write_part(str(folder / f"part-{number:06d}.parquet"), rows, size=embedding_size, dtype="fp16", note={})


@contextmanager
def _peaks() -> Iterator[dict[str, int]]:
    """What this process and the workers of its Ray add to their memory until the end; filled then, on Linux."""
    found: dict[str, int] = {}
    own = os.getpid()
    before = {pid: peak_bytes(pid, reset=True) for pid in (own, *ray_workers(own))}
    seen: dict[int, int] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            seen.update({pid: peak_bytes(pid) for pid in ray_workers(own)})

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        if seen:
            # 0: where there was room, of what had been let go, or in a Ray whose workers had more loaded
            found["driver_bytes"] = max(0, peak_bytes(own) - before.pop(own))
            loaded = max(before.values(), default=0)  # what a worker begins with that came later
            found["task_bytes"] = max(0, *(peak - before.get(pid, loaded) for pid, peak in seen.items()))
