"""Benchmark of a whole prune job on this machine: seconds by stage, and memory."""

import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rayface import config as configs
from rayface import machine
from rayface.bench.nms import WEBFACE42M_FACES
from rayface.bench.process_tree import cpu_seconds, peak_bytes, ray_workers
from rayface.config import Config
from rayface.curate.identities import check_keep
from rayface.curate.prune.core_set import prune
from rayface.embedding.part_file import write_part
from rayface.pools import background_thread
from rayface.session import ray_session

CORES = 64
_SERIAL = "write"  # this stage runs in one process
_FILE_ROWS, _BATCH_ROWS = 40_000, 4_096
_WARM_FACES = 2_000
_LOOK_SECONDS = 0.2


def _config(embeddings: Path, **settings: float) -> Config:
    """Return the config of an untracked prune job, with its output beside the embeddings."""
    own = {f"prune.{name}": value for name, value in settings.items()}
    paths = {"prune.embeddings": str(embeddings), "prune.out": f"{embeddings}_out"}
    return configs.load(overrides={**own, **paths, "tracking.enabled": False})


@dataclass(frozen=True, kw_only=True)
class PruneBench:
    """Settings of a measurement of a prune job on synthetic fp16 embeddings in random order."""

    faces: int = 200_000
    identities: int = 10_000
    embedding_size: int = 512
    keep: float = 0.6
    block_bytes: int = 64 * 2**20
    """See prune.block_size."""
    largest: int = 0
    """Images of one additional identity; the others have about the same size."""
    cpus: int | None = None
    """CPUs of the local Ray; None: all."""
    directory: Path | None = None
    """Folder on the disk to measure; None: the temporary folder."""
    seed: int = 0

    def check(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: one line.
        """
        check_keep(self.keep)
        if min(self.faces, self.identities, self.embedding_size) < 1 or not 0 <= self.largest <= self.faces:
            raise ValueError(
                f"faces {self.faces}, identities {self.identities}, embedding size {self.embedding_size}: must be at "
                f"least 1; largest {self.largest}: from 0 to the number of faces"
            )


@dataclass(frozen=True, kw_only=True)
class PruneTimes:
    """Settings and measurements of a prune job."""

    faces: int
    identities: int
    embedding_size: int
    keep: float
    block_bytes: int
    largest: int
    cpus: int
    files: int
    embedding_bytes: int
    threshold: float | None
    kept: float
    """Fraction of the images that are kept."""
    stage_seconds: Mapping[str, float]
    cpu_seconds: float
    """Of all processes; depends less on other load of the machine."""
    driver_bytes: int | None
    """Peak memory that the job adds to the driver; None except on Linux."""
    task_bytes: int | None
    """Peak memory that the job adds to the largest worker; None except on Linux."""

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(self.stage_seconds.values())

    @property
    def projected_hours(self) -> dict[str, float]:
        """Hours for WebFace42M on 64 cores by stage, if the disk keeps up; serial stages do not get faster."""
        scale = WEBFACE42M_FACES / self.faces / 3600
        shares = {stage: 1.0 if stage == _SERIAL else self.cpus / CORES for stage in self.stage_seconds}
        return {stage: scale * seconds * shares[stage] for stage, seconds in self.stage_seconds.items()}

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        values = {name: value for name, value in asdict(self).items() if name not in ("driver_bytes", "task_bytes")}
        peaks = {name: getattr(self, name) for name in ("driver_bytes", "task_bytes")}
        known = {name: value for name, value in peaks.items() if value is not None}
        return {**values, "seconds": self.seconds, "projected_hours_42m_64_cores": self.projected_hours, **known}


def bench_prune(settings: PruneBench) -> PruneTimes:
    """Run `core_set.prune` on synthetic embeddings, on a local Ray, and measure its stages and processes.

    Raises:
        ValueError: invalid settings, one line.
    """
    settings.check()
    faces, keep, seed = settings.faces, settings.keep, settings.seed
    cpus = settings.cpus or machine.num_cpus()
    with tempfile.TemporaryDirectory(dir=settings.directory) as folder, ray_session(num_cpus=cpus, exact=True):
        root = Path(folder)
        few = max(1, settings.identities * _WARM_FACES // faces)
        _draw_files(root / "warm", replace(settings, faces=_WARM_FACES, identities=few, largest=0))
        block_size = max(1, _WARM_FACES * settings.embedding_size // cpus)
        prune(_config(root / "warm", keep=keep, block_size=block_size, seed=seed))
        _draw_files(root / "all", settings)
        before = cpu_seconds(os.getpid())
        with _peaks() as peaks:
            found = prune(_config(root / "all", keep=keep, block_size=settings.block_bytes, seed=seed))
        used = sum(seconds - before.get(pid, 0.0) for pid, seconds in cpu_seconds(os.getpid()).items())
        files = len(list((root / "all").iterdir()))
    return PruneTimes(
        faces=faces,
        identities=found.counts.identities,
        embedding_size=settings.embedding_size,
        keep=keep,
        block_bytes=settings.block_bytes,
        largest=settings.largest,
        cpus=cpus,
        files=files,
        embedding_bytes=2 * faces * settings.embedding_size,
        threshold=found.threshold,
        kept=found.keep,
        stage_seconds=found.stage_seconds,
        cpu_seconds=used,
        driver_bytes=peaks.get("driver_bytes"),
        task_bytes=peaks.get("task_bytes"),
    )


def _draw_files(folder: Path, settings: PruneBench) -> None:
    """Write synthetic embeddings in random order into parquet files; one identity has `largest` of them."""
    faces, identities, largest = settings.faces, settings.identities, settings.largest
    embedding_size = settings.embedding_size
    folder.mkdir()
    random = np.random.default_rng(settings.seed)
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
    """Measure the peak memory that this process and its Ray workers add inside the context.

    Yields:
        driver_bytes and task_bytes, filled on exit; empty except on Linux.
    """
    found: dict[str, int] = {}
    own = os.getpid()
    before = {pid: peak_bytes(pid, reset=True) for pid in (own, *ray_workers(own))}
    seen: dict[int, int] = {}

    def look(done: threading.Event) -> None:
        while not done.wait(_LOOK_SECONDS):
            seen.update({pid: peak_bytes(pid) for pid in ray_workers(own)})

    with background_thread(look, "memory", wait=None):
        yield found
    if seen:
        # At least 0: memory that was free before is reused, and a worker may have started with more loaded.
        found["driver_bytes"] = max(0, peak_bytes(own) - before.pop(own))
        loaded = max(before.values(), default=0)  # memory with which a later worker starts
        found["task_bytes"] = max(0, *(peak - before.get(pid, loaded) for pid, peak in seen.items()))
