"""Benchmark of online clustering on drawn vectors: time and comparisons of an image as the stream grows."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.ogmc import OnlineGaussianMixture

WEBFACE42M_IMAGES = 42_474_557
_BLOCK = 10_000
_QUERIES = 256
_STATS: Any = faiss.cvar
_SPREAD = 0.7  # length of an image's deviation from its person: two images of one have a cosine of .67
_LINK = 0.4


@dataclass(frozen=True, kw_only=True)
class ClusterBench:
    """Settings: a stream of `images` drawn vectors, measured where it has `marks` of them."""

    marks: tuple[int, ...] = (10_000, 100_000)
    embedding_size: int = 128
    images_per_identity: int = 20
    seed: int = 0

    def check(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: one line.
        """
        if not self.marks or min(self.marks) < _BLOCK or list(self.marks) != sorted(set(self.marks)):
            raise ValueError(f"images {list(self.marks)}: must be rising numbers of at least {_BLOCK:,}")
        if self.embedding_size < 8 or not 1 <= self.images_per_identity <= self.marks[-1]:
            raise ValueError(
                f"embedding_size {self.embedding_size}, images_per_identity {self.images_per_identity}: "
                "must be at least 8, and at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class ClusterMark:
    """Measurements of the last tenth of the first `images` images, or of their last 10,000.

    Attributes:
        microseconds: CPU time of an image.
        comparisons: vectors and sketches compared with an image by the index.
        recall: share of drawn images whose nearest indexed component, by brute force, is among the candidates.
        pairwise_f: of all images so far.
        peak_bytes: largest memory of the process so far.
    """

    images: int
    components: int
    microseconds: float
    comparisons: float
    recall: float
    pairwise_f: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class ClusterTimes:
    """Measurements, and the CPU hours of WebFace42M if an image's time grows with the logarithm of the images."""

    embedding_size: int
    images_per_identity: int
    marks: tuple[ClusterMark, ...]
    projected_hours_42m: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def bench_cluster(settings: ClusterBench) -> ClusterTimes:
    """Measure OGMC on drawn vectors.

    Raises:
        ValueError: a bad setting.
    """
    settings.check()
    stream = _Stream(settings)
    OnlineGaussianMixture().partial_fit(np.eye(8))  # compiles
    own = OnlineGaussianMixture(radius=0.85, link=_LINK)
    marks, start, seconds, compared = [], 0, 0.0, 0.0
    for mark in settings.marks:
        measured_from = mark - max(_BLOCK, mark // 10)
        while start < mark:
            stop = min(mark, start + _BLOCK)
            if start <= measured_from:
                first, seconds, compared = start, 0.0, 0.0
            vectors = stream.images(start, stop)
            _reset()
            before = time.process_time()
            own.partial_fit(vectors)
            seconds += time.process_time() - before
            compared += _STATS.indexIVF_stats.ndis + _STATS.hnsw_stats.ndis
            start = stop
        marks.append(
            ClusterMark(
                images=mark,
                components=own.num_components,
                microseconds=seconds / (mark - first) * 1e6,
                comparisons=compared / (mark - first),
                recall=_recall(own, stream.images(mark, mark + _QUERIES)),
                pairwise_f=cluster_scores(stream.labels[:mark], own.labels_).pairwise_f,
                peak_bytes=_peak_bytes(),
            )
        )
    return ClusterTimes(
        embedding_size=settings.embedding_size,
        images_per_identity=settings.images_per_identity,
        marks=tuple(marks),
        projected_hours_42m=_projected(marks) / 3600,
    )


def as_table(found: ClusterTimes) -> list[dict[str, str]]:
    """Return rows to print."""
    return [
        {
            "images": f"{mark.images:,}",
            "components": f"{mark.components:,}",
            "us an image": f"{mark.microseconds:.0f}",
            "comparisons": f"{mark.comparisons:,.0f}",
            "recall": f"{mark.recall:.3f}",
            "pairwise F": f"{mark.pairwise_f:.3f}",
            "memory": f"{mark.peak_bytes / 2**30:.2f} GiB",
        }
        for mark in found.marks
    ]


class _Stream:
    """Drawn images in random order, any range of them at a time."""

    def __init__(self, settings: ClusterBench) -> None:
        self._size, self._seed = settings.embedding_size, settings.seed
        random = np.random.default_rng(settings.seed)
        count = settings.marks[-1] + _QUERIES
        identities = max(1, settings.marks[-1] // settings.images_per_identity)
        self.labels = random.permutation(np.arange(count) % identities)

    def images(self, start: int, stop: int) -> NDArray[np.float32]:
        found = np.empty((stop - start, self._size), np.float32)
        for row, label in enumerate(self.labels[start:stop].tolist()):  # persons are drawn again: they need no memory
            person = np.random.default_rng([self._seed, 1, label]).standard_normal(self._size, np.float32)
            found[row] = person / np.linalg.norm(person)
        other = np.random.default_rng([self._seed, 2, start]).standard_normal(found.shape, np.float32)
        return found + other * np.float32(_SPREAD / np.sqrt(self._size))


def _reset() -> None:
    _STATS.indexIVF_stats.reset()
    _STATS.hnsw_stats.reset()


def _recall(own: OnlineGaussianMixture, vectors: NDArray[np.float32]) -> float:
    found, exact = own.candidates(vectors), own.nearest_components(vectors)
    return float((found == exact[:, None]).any(axis=1).mean())


def _projected(marks: Sequence[ClusterMark]) -> float:
    """Return the CPU seconds of all of WebFace42M: a line through time by logarithm of the images, never falling."""
    logs, times = np.log([mark.images for mark in marks]), np.array([mark.microseconds for mark in marks])
    slope = max(0.0, float(np.polyfit(logs, times, 1)[0])) if len(marks) > 1 else 0.0
    last = times[-1] + slope * (np.log(WEBFACE42M_IMAGES) - logs[-1])
    return float((last - slope) * WEBFACE42M_IMAGES / 1e6)  # the mean of a logarithm up to N is log N - 1


def _peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
