"""How many faces a second Face-NMS looks at on this machine, against a plain double loop."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.curate.face_nms import suppress_many
from rayface.curate.identities import check_keep
from rayface.curate.prune.keep_ratio import threshold_for_keep

WEBFACE42M_FACES = 42_474_557
_CORES = 64
_SPREAD = 0.6  # of the logarithm of identities' sizes
_CHUNK = 200
_REPEATS = 3
_ANY_THRESHOLD = 0.6


def bench_nms(
    faces: int = 1_000_000,
    identities: int = 50_000,
    embedding_size: int = 512,
    keep: float = 0.6,
    dtype: str = "fp16",
    threads: int = 1,
    *,
    loop_identities: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure `suppress_many` on drawn embeddings, and a plain double loop on a few of their identities.

    Sizes of identities are log-normal; an image is its identity's direction and noise of a strength of its own.

    Args:
        keep: share of the faces to keep; the threshold for it is searched on a sample, not timed.
        dtype: of the stored embeddings, "fp16" or "fp32".
        threads: of Face-NMS; the loop runs on one, the projection is for 64 of them.
        loop_identities: drawn by chance, on which the double loop is timed; its seconds for all are scaled by faces.

    Returns:
        settings as given; "threshold", "kept"; "seconds" (best of three runs, as all times), "faces_per_second";
        "half_seconds" of the first half of the identities and "linearity"; of the loop "loop_faces",
        "loop_measured_seconds", "loop_scaled_seconds" (scaled, not run), "times_faster", "same_choice";
        "embedding_bytes", "working_bytes"; "projected_hours_42m_64_cores" of WebFace42M's 42,474,557 images at 64 times
        this rate per thread, without reading and shuffling.

    Raises:
        ValueError: counts that cannot be.
    """
    check_keep(keep)
    _check(faces, identities, dtype, threads, loop_identities)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        embeddings, offsets = draw_embeddings(faces, identities, embedding_size, dtype, seed)
        found = _measure(embeddings, offsets, keep, np.random.default_rng(seed), loop_identities)
    finally:
        torch.set_num_threads(before)
    rate = faces / found["seconds"]
    return {
        "faces": faces,
        "identities": identities,
        "embedding_size": embedding_size,
        "keep": keep,
        "dtype": dtype,
        "threads": threads,
        **found,
        "faces_per_second": rate,
        "projected_hours_42m_64_cores": WEBFACE42M_FACES / (rate / threads * _CORES) / 3600,
    }


def _check(faces: int, identities: int, dtype: str, threads: int, loop_identities: int) -> None:
    if identities < 2 or faces < identities:
        raise ValueError(f"faces {faces} and identities {identities}: must be at least 2 identities, a face for each")
    if dtype not in ("fp16", "fp32"):
        raise ValueError(f"dtype {dtype!r}: must be fp16 or fp32")
    if threads < 1 or loop_identities < 1:
        raise ValueError(f"threads {threads} and loop_identities {loop_identities}: must be at least 1")


def draw_embeddings(
    faces: int, identities: int, embedding_size: int, dtype: str = "fp16", seed: int = 0
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    """Draw embeddings (faces, D) of identities of log-normal sizes, and their offsets (identities + 1,)."""
    random = np.random.default_rng(seed)
    weights = random.lognormal(0, _SPREAD, identities)
    ends = np.round(np.cumsum(weights) / weights.sum() * (faces - identities)).astype(np.int64)
    offsets = np.r_[0, ends + np.arange(1, identities + 1)]  # at least one face each
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
    """Face-NMS of one identity the plain way: score, sort, compare face by face in float64."""
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


def _measure(
    embeddings: NDArray[np.floating[Any]],
    offsets: NDArray[np.int64],
    keep: float,
    random: np.random.Generator,
    loop_identities: int,
) -> dict[str, Any]:
    faces, half = len(embeddings), (len(offsets) - 1) // 2
    suppress_many(embeddings[: offsets[2]], offsets[:3], _ANY_THRESHOLD)  # loads what the libraries load once
    start = _peak_bytes()
    suppress_many(embeddings, offsets, _ANY_THRESHOLD)  # before the search, which takes memory of its own
    working = _peak_bytes() - start
    threshold, _share = threshold_for_keep(embeddings, offsets, keep)
    kept = suppress_many(embeddings, offsets, threshold).kept
    few = random.permutation(len(offsets) - 1)[:loop_identities]
    rows = [slice(offsets[k], offsets[k + 1]) for k in few]
    half_faces = int(offsets[half])
    seconds, half_seconds, loop, plain = _in_turn(
        lambda: suppress_many(embeddings, offsets, threshold),
        lambda: suppress_many(embeddings[:half_faces], offsets[: half + 1], threshold),
        lambda: [double_loop(embeddings[part], threshold) for part in rows],
    )
    loop_faces = sum(map(len, plain))
    return {
        "threshold": threshold,
        "kept": float(kept.mean()),
        "seconds": seconds,
        "half_seconds": half_seconds,
        "linearity": seconds / faces * half_faces / half_seconds,
        "loop_faces": loop_faces,
        "loop_measured_seconds": loop,
        "loop_scaled_seconds": loop * faces / loop_faces,
        "times_faster": loop * faces / loop_faces / seconds,
        "same_choice": all(bool((kept[part] == found).all()) for part, found in zip(rows, plain, strict=True)),
        "embedding_bytes": embeddings.nbytes,
        "working_bytes": working,
    }


def _in_turn(
    whole: Callable[[], Any], half: Callable[[], Any], loop: Callable[[], Any]
) -> tuple[float, float, float, Any]:
    """The quickest of a few runs of each, in turn, and what loop returns: other work on the machine can only add."""
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
