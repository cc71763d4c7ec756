"""Benchmark of Face-NMS on this machine, against a plain double loop."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.curate.face_nms import suppress_many
from rayface.curate.identities import check_keep
from rayface.curate.prune.keep_ratio import threshold_for_keep

WEBFACE42M_FACES = 42_474_557
_CORES = 64
_SHOWN_SETTINGS = ("faces", "identities", "embedding_size", "keep", "dtype", "threads")
_SPREAD = 0.6  # standard deviation of the logarithm of identity sizes
_CHUNK = 200
_REPEATS = 3
_ANY_THRESHOLD = 0.6


@dataclass(frozen=True, kw_only=True)
class NmsBench:
    """Settings of a measurement of Face-NMS on synthetic embeddings of identities of log-normal sizes."""

    faces: int = 1_000_000
    identities: int = 50_000
    embedding_size: int = 512
    keep: float = 0.6
    """Fraction of the images to keep; the search for its threshold is not timed."""
    dtype: str = "fp16"
    """Type of the stored embeddings: fp16 or fp32."""
    threads: int = 1
    """Threads of Face-NMS; the double loop has one."""
    loop_identities: int = 500
    """Number of random identities that the double loop is timed on."""
    seed: int = 0

    def check(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: one line.
        """
        check_keep(self.keep)
        if self.identities < 2 or self.faces < self.identities:
            raise ValueError(
                f"faces {self.faces} and identities {self.identities}: must be at least 2 identities with an image each"
            )
        if self.dtype not in ("fp16", "fp32"):
            raise ValueError(f"dtype {self.dtype!r}: must be fp16 or fp32")
        if self.threads < 1 or self.loop_identities < 1:
            raise ValueError(f"threads {self.threads} and loop_identities {self.loop_identities}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class NmsTimes:
    """Measurements of Face-NMS; seconds are the minimum of three runs."""

    threshold: float
    kept: float
    """Fraction of the images that are kept."""
    seconds: float
    half_seconds: float
    """Seconds of the first half of the identities."""
    linearity: float
    """Seconds per image of all identities, relative to those of the first half."""
    loop_faces: int
    loop_measured_seconds: float
    loop_scaled_seconds: float
    """Seconds of the double loop, scaled to all images."""
    times_faster: float
    same_choice: bool
    """Whether Face-NMS and the double loop keep the same images."""
    embedding_bytes: int
    working_bytes: int


@dataclass(frozen=True, kw_only=True)
class NmsResult:
    """Settings and measurements of Face-NMS."""

    settings: NmsBench
    times: NmsTimes

    @property
    def faces_per_second(self) -> float:
        """Images per second of Face-NMS."""
        return self.settings.faces / self.times.seconds

    @property
    def projected_hours(self) -> float:
        """Hours for WebFace42M on 64 cores at this rate per thread, without reading and shuffling."""
        return WEBFACE42M_FACES / (self.faces_per_second / self.settings.threads * _CORES) / 3600

    def as_dict(self) -> dict[str, object]:
        """Return settings and measurements by name, for --json."""
        settings = {name: value for name, value in asdict(self.settings).items() if name in _SHOWN_SETTINGS}
        rates = {
            "faces_per_second": self.faces_per_second,
            "projected_hours_42m_64_cores": self.projected_hours,
        }
        return {**settings, **asdict(self.times), **rates}


def bench_nms(settings: NmsBench) -> NmsResult:
    """Measure `suppress_many` on synthetic embeddings, and a plain double loop on some of their identities.

    Raises:
        ValueError: invalid settings, one line.
    """
    settings.check()
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        embeddings, offsets = draw_embeddings(
            settings.faces, settings.identities, settings.embedding_size, settings.dtype, settings.seed
        )
        times = _measure(settings, embeddings, offsets)
    finally:
        torch.set_num_threads(before)
    return NmsResult(settings=settings, times=times)


def draw_embeddings(
    faces: int, identities: int, embedding_size: int, dtype: str = "fp16", seed: int = 0
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """Draw embeddings (faces, D), sorted by identity, and the identities' offsets (identities + 1,).

    Identity sizes are log-normal; an embedding is its identity's direction plus noise of random strength.
    """
    random = np.random.default_rng(seed)
    weights = random.lognormal(0, _SPREAD, identities)
    ends = np.round(np.cumsum(weights) / weights.sum() * (faces - identities)).astype(np.int64)
    offsets = np.r_[0, ends + np.arange(1, identities + 1)]  # at least one image each
    embeddings = np.empty((faces, embedding_size), np.float16 if dtype == "fp16" else np.float32)
    for first in range(0, identities, _CHUNK):
        sizes = np.diff(offsets[first : first + _CHUNK + 1])
        start, stop = offsets[first], offsets[first] + sizes.sum()
        noise = random.standard_normal((stop - start, embedding_size), np.float32)
        noise *= random.uniform(0.4, 1.2, (len(noise), 1)).astype(np.float32)
        noise += np.repeat(random.standard_normal((len(sizes), embedding_size), np.float32), sizes, axis=0)
        embeddings[start:stop] = noise
    return embeddings, offsets


def double_loop(embeddings: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.bool_]:
    """Plain Face-NMS of one identity in float64: score, sort, compare every pair."""
    wide = embeddings.astype(np.float64)
    units = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    mean = units.mean(axis=0)
    scores = [round(1 - float((face * mean).sum()), 12) for face in units]
    order = sorted(range(len(units)), key=lambda face: -scores[face])
    kept: NDArray[np.bool_] = np.ones(len(units), bool)
    for place, face in enumerate(order):
        if kept[face]:
            for other in order[place + 1 :]:
                if kept[other] and units[face] @ units[other] > threshold:
                    kept[other] = False
    return kept


def _measure(settings: NmsBench, embeddings: NDArray[np.floating[Any]], offsets: NDArray[np.int64]) -> NmsTimes:
    faces, half = len(embeddings), (len(offsets) - 1) // 2
    suppress_many(embeddings[: offsets[2]], offsets[:3], _ANY_THRESHOLD)  # warm up: loads and compiles libraries
    start = _peak_bytes()
    suppress_many(embeddings, offsets, _ANY_THRESHOLD)  # before the threshold search, which allocates more
    working = _peak_bytes() - start
    threshold, _share = threshold_for_keep(embeddings, offsets, settings.keep)
    kept = suppress_many(embeddings, offsets, threshold).kept
    few = np.random.default_rng(settings.seed).permutation(len(offsets) - 1)[: settings.loop_identities]
    rows = [slice(offsets[k], offsets[k + 1]) for k in few]
    half_faces = int(offsets[half])
    seconds, half_seconds, loop, plain = _in_turn(
        lambda: suppress_many(embeddings, offsets, threshold),
        lambda: suppress_many(embeddings[:half_faces], offsets[: half + 1], threshold),
        lambda: [double_loop(embeddings[part], threshold) for part in rows],
    )
    loop_faces = sum(map(len, plain))
    return NmsTimes(
        threshold=threshold,
        kept=float(kept.mean()),
        seconds=seconds,
        half_seconds=half_seconds,
        linearity=seconds / faces * half_faces / half_seconds,
        loop_faces=loop_faces,
        loop_measured_seconds=loop,
        loop_scaled_seconds=loop * faces / loop_faces,
        times_faster=loop * faces / loop_faces / seconds,
        same_choice=all(bool((kept[part] == found).all()) for part, found in zip(rows, plain, strict=True)),
        embedding_bytes=embeddings.nbytes,
        working_bytes=working,
    )


def _in_turn(
    whole: Callable[[], Any], half: Callable[[], Any], loop: Callable[[], Any]
) -> tuple[float, float, float, Any]:
    """Run each in turn, several times; return the minimum seconds of each and the result of `loop`."""
    seconds = []
    for _ in range(_REPEATS):
        marks = [time.perf_counter()]
        for work in (whole, half, loop):
            found = work()
            marks.append(time.perf_counter())
        seconds.append(np.diff(marks))
    best = np.min(seconds, axis=0)
    return float(best[0]), float(best[1]), float(best[2]), found


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
