"""Thresholds of clustering: estimated from embeddings without labels, or the best one on labelled embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.curate.affinity import base_cosine
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.unit_vectors import silhouettes

_LOWEST, _STEP = 0.15, 0.05  # shares of the way from random images to nearest neighbours that are tried
_NEARLY = 0.97  # of the best mean silhouette, which is flat around its maximum, where low thresholds merge persons
_SAMPLE = 5000  # images whose silhouettes are measured
_STEPS = np.arange(0.2, 0.96, 0.05)


def estimated_threshold(
    vectors: Floats, nearest_cosines: NDArray[np.float32], cluster: Callable[[float], Ints], most: float
) -> float:
    """Return the threshold whose clusters are best apart, among those between random images and nearest neighbours.

    It is the highest one whose mean silhouette is nearly the best. It assumes that most images have another of their
    person. A threshold from labelled embeddings is better.

    Args:
        cluster: returns the clusters (N,) at a threshold.
        most: highest share of the way that is tried.
    """
    base = base_cosine(vectors)
    tried = base + np.arange(_LOWEST, most + _STEP / 2, _STEP) * max(0.02, float(np.median(nearest_cosines)) - base)
    tried = np.minimum(tried, 1.0)
    some = np.unique(np.linspace(0, len(vectors) - 1, min(_SAMPLE, len(vectors))).astype(int))
    means = np.array([_mean_silhouette(vectors, cluster(float(each)), some) for each in tried])
    good = means >= means.max() - (1 - _NEARLY) * abs(means.max())
    return float(tried[np.flatnonzero(good)[-1]])


def _mean_silhouette(vectors: Floats, clusters: Ints, some: Ints) -> float:
    """Return the mean silhouette of some images (n,), 0 for those that are alone in their cluster."""
    _, own, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    numbers = np.where(sizes > 1, np.cumsum(sizes > 1) - 1, -1)
    own, sizes = numbers[own], sizes[sizes > 1]
    if len(sizes) < 2:  # one cluster is apart from nothing
        return 0.0
    sums = np.zeros((len(sizes), vectors.shape[1]), np.float32)
    np.add.at(sums, own[own >= 0], vectors[own >= 0])
    sums /= sizes[:, None]
    return float(silhouettes(vectors[some], own[some], sums, sizes).mean())


def best_threshold(
    vectors: Floats, labels: Ints, nearest_cosines: NDArray[np.float32], cluster: Callable[[float], Ints]
) -> tuple[float, float]:
    """Return the threshold of the best pairwise F on labelled vectors, searched on two grids, and its F.

    Args:
        cluster: returns the clusters (N,) at a threshold.
    """
    base = base_cosine(vectors)
    reach = float(np.median(nearest_cosines)) - base
    tried: dict[float, float] = {}

    def best(shares: NDArray[np.float64]) -> float:
        for share in shares.round(4).tolist():
            if share not in tried:
                tried[share] = cluster_scores(labels, cluster(base + share * reach)).pairwise_f
        highest = max(tried.values())
        equal = sorted(share for share, score in tried.items() if score == highest)
        return equal[len(equal) // 2]  # the middle of a plateau fits other images best

    coarse = best(_STEPS)
    share = best(coarse + np.array([-0.025, -0.0125, 0.0125, 0.025]))
    return base + share * reach, tried[share]
