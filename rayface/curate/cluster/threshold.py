"""Thresholds of clustering: estimated from embeddings without labels, or the best one on labelled embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.curate.affinity import base_cosine
from rayface.curate.cluster.metrics import cluster_scores

_SHARE = 0.55
_SAMPLE = 2000  # images whose nearest neighbours are looked at
_STEPS = np.arange(0.2, 0.96, 0.05)


def estimated_threshold(vectors: Floats, nearest_cosines: NDArray[np.float32]) -> float:
    """Return a threshold between the cosine of two random images and the median cosine of nearest neighbours.

    It assumes that most images have another of their person. A threshold from labelled embeddings is better.
    """
    base = base_cosine(vectors)
    return base + _SHARE * max(0.02, float(np.median(nearest_cosines)) - base)


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
