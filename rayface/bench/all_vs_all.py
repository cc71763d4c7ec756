"""Benchmark of all-vs-all: the exact rates over all pairs of drawn embeddings, against the bare matrix product."""

from __future__ import annotations

import resource
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.bench.processes import check_device, now
from rayface.evaluation.all_vs_all import tail_rates
from rayface.evaluation.pair_tiles import PairTiles
from rayface.progress import phase

_PER_IDENTITY = 20
_NOISE = 3.0  # length of an image's difference from its identity, relative to the identity's
_BLOCK = 16_384
_TILES = 5  # tiles for each bare product


@dataclass(frozen=True, kw_only=True)
class AllVsAllBench:
    """Settings of a measurement: number of embeddings, their size, and the false acceptance rates."""

    images: int = 100_000
    embedding_size: int = 512
    fars: tuple[float, ...] = (1e-6,)
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class AllVsAllTimes:
    """Settings and measurements."""

    images: int
    embedding_size: int
    device: str
    fars: list[float]
    tar: list[float]
    seconds: float
    passes: float
    """Passes over all pairs; above 1 if a bracket missed its threshold."""
    pairs_per_second: float
    bare_pairs_per_second: float
    """Rate of the matrix products alone, measured in turn with the tiles."""
    ratio: float
    """Rate relative to that of the matrix products."""
    peak_bytes: int
    """Peak memory of this process, embeddings included."""

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        return asdict(self)


def bench_all_vs_all(settings: AllVsAllBench) -> AllVsAllTimes:
    """Measure on drawn embeddings, 20 images an identity.

    Raises:
        ValueError: fewer than 40 images, or a device that this machine does not have.
    """
    if settings.images < 2 * _PER_IDENTITY:
        raise ValueError(f"images: {settings.images}: must be at least {2 * _PER_IDENTITY}")
    check_device(settings.device, 1)
    with phase("draw embeddings", rows=settings.images):
        embeddings, labels = drawn_embeddings(settings)
    bare = _Product(settings)
    compared: list[int] = []
    start = now(settings.device)
    with phase("compare pairs") as current:

        def advance(pairs: int) -> None:
            compared.append(pairs)
            if len(compared) % _TILES == 1:
                bare.run()
            current.advance(pairs)

        found = tail_rates(embeddings, labels, settings.fars, device=settings.device, done=advance)
    seconds = now(settings.device) - start - bare.seconds
    num_pairs = found.num_genuine + found.num_impostor
    return AllVsAllTimes(
        images=settings.images,
        embedding_size=settings.embedding_size,
        device=settings.device,
        fars=list(settings.fars),
        tar=found.tar.tolist(),
        seconds=seconds,
        passes=sum(compared) / num_pairs,
        pairs_per_second=num_pairs / seconds,
        bare_pairs_per_second=bare.pairs_per_second,
        ratio=num_pairs / seconds / bare.pairs_per_second,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def drawn_embeddings(settings: AllVsAllBench) -> tuple[NDArray[np.float32], Ints]:
    """Return embeddings (n, D) of identities in random order, and their labels (n,)."""
    random = np.random.default_rng(settings.seed)
    labels = random.permutation(np.arange(settings.images, dtype=np.int64) // _PER_IDENTITY)
    size = settings.embedding_size
    centers = random.standard_normal((int(labels.max()) + 1, size), np.float32)
    embeddings = np.empty((settings.images, size), np.float32)
    for start in range(0, settings.images, _BLOCK):
        part = slice(start, start + _BLOCK)
        rows = centers[labels[part]]
        embeddings[part] = rows + _NOISE * random.standard_normal(rows.shape, np.float32)
    return embeddings, labels


class _Product:
    """The matrix product of a tile alone."""

    def __init__(self, settings: AllVsAllBench) -> None:
        rows, columns = PairTiles.SHAPE
        self._left, self._right = (
            torch.randn(n, settings.embedding_size, device=settings.device) for n in (rows, columns)
        )
        self._out, self._device = torch.empty(rows, columns, device=settings.device), settings.device
        torch.mm(self._left, self._right.T, out=self._out)
        self.seconds, self._runs = 0.0, 0

    def run(self) -> None:
        """Measure one product."""
        start = now(self._device)
        torch.mm(self._left, self._right.T, out=self._out)
        self.seconds += now(self._device) - start
        self._runs += 1

    @property
    def pairs_per_second(self) -> float:
        """Mean rate of all products."""
        return self._runs * self._out.numel() / self.seconds
