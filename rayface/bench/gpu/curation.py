"""Part e: Face-NMS on the cores of the machine, and the search for equal people among all pairs on the device."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from rayface.bench.gpu.case import Case, Kit, Measured
from rayface.bench.nms import double_loop, draw_embeddings
from rayface.curate.clean.pair_search import PairSearch, Tile, product_dtype
from rayface.curate.face_nms import suppress_many

THRESHOLD, DUPLICATE = 0.6, 0.9  # of Face-NMS, and of pairs
LOOPED = 20  # identities that the double loop confirms
_LIMIT = 10_000_000


@dataclass(frozen=True, kw_only=True)
class NmsRate(Measured):
    """Of drawn embeddings of 512 x fp16, the choice held to a plain double loop on a few identities."""

    images_per_s: float
    threads: int
    kept: float


@dataclass(frozen=True, kw_only=True)
class PairRate(Measured):
    """All pairs of rows once, each decided in float64."""

    pairs_per_s: float
    tflops: float
    """If every pair took the product of two whole rows."""
    pairs_found: int
    products: str
    """Type that they were computed in."""


@dataclass(frozen=True, kw_only=True)
class SamePairs(Measured):
    """Pairs that the device and the CPU find."""

    pairs_found: int
    largest_difference: float
    """Of a cosine."""


def cases(kit: Kit) -> Iterator[Case]:
    """Yield the search on both devices, its rate, and that of Face-NMS."""
    parity, rows, faces = (300, 1000, 2000) if kit.mini else (8000, 200_000, 400_000)
    yield Case(name="all pairs, device against CPU", run=partial(same_pairs, parity, kit.device), seconds=5)
    yield Case(name=f"all pairs of {rows:,}", run=partial(pair_rate, rows, kit.device), seconds=15)
    yield Case(name=f"Face-NMS, {faces:,} images, CPU", run=partial(nms_rate, faces), seconds=20)


def nms_rate(faces: int) -> NmsRate:
    """Measure Face-NMS on all cores."""
    embeddings, offsets = draw_embeddings(faces, faces // 20, 512)
    some = int(offsets[LOOPED])
    suppress_many(embeddings[:some], offsets[: LOOPED + 1], THRESHOLD)  # compiles
    start = time.perf_counter()
    kept = suppress_many(embeddings, offsets, THRESHOLD).kept
    seconds = time.perf_counter() - start
    bounds = itertools.pairwise(offsets[: LOOPED + 1])
    same = all((kept[a:b] == double_loop(embeddings[a:b], THRESHOLD)).all() for a, b in bounds)
    return NmsRate(passed=same, images_per_s=faces / seconds, threads=torch.get_num_threads(), kept=float(kept.mean()))


def pair_rate(rows: int, device: str) -> PairRate:
    """Measure the search for pairs among drawn embeddings with some planted."""
    embeddings = _with_duplicates(rows)
    search = PairSearch("duplicates", embeddings, None, DUPLICATE, limit=_LIMIT, device=device)
    search(Tile(0, min(rows, 4096), 0, min(rows, 4096)))  # warms up
    start = time.perf_counter()
    found = search(Tile(0, rows, 0, rows))
    seconds = time.perf_counter() - start
    pairs = rows * (rows - 1) / 2
    return PairRate(
        passed=len(found[0]) >= rows // 100,
        pairs_per_s=pairs / seconds,
        tflops=2 * 512 * pairs / seconds / 1e12,
        pairs_found=len(found[0]),
        products=str(product_dtype(device)).removeprefix("torch."),
    )


def same_pairs(rows: int, device: str) -> SamePairs:
    """Compare the pairs that the device finds with those of the CPU: they are the same to the bit."""
    embeddings = _with_duplicates(rows)
    found, wanted = (
        PairSearch("duplicates", embeddings, None, DUPLICATE, limit=_LIMIT, device=each)(Tile(0, rows, 0, rows))
        for each in (device, "cpu")
    )
    equal = all(np.array_equal(a, b) for a, b in zip(found[:2], wanted[:2], strict=True))
    difference = float(np.abs(found[2] - wanted[2]).max(initial=0.0)) if equal else float("inf")
    return SamePairs(
        passed=equal and difference == 0 and len(wanted[0]) >= rows // 100,
        pairs_found=len(found[0]),
        largest_difference=difference,
    )


def _with_duplicates(rows: int) -> np.ndarray:
    """Return drawn embeddings (rows, 512), one in fifty of them nearly equal to another one."""
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((rows, 512), np.float32)
    copies = rows // 50
    embeddings[-copies:] = embeddings[:copies] + 0.1 * random.standard_normal((copies, 512), np.float32)
    return embeddings
