"""Affinity of two groups of images: their mean cosine, in units of how cohesive the two are themselves.

    affinity(a, b) = (cosine(a, b) - base) / sqrt(cohesion(a) * cohesion(b))

Images of one person are as similar to each other across two groups as within them, so one threshold fits persons whose
images vary much and persons whose images are all alike, whose strangers are alike too. The cohesion of a few images is
uncertain: it is averaged with that of two images that just count as one person. Mean cosines follow from sums of unit
vectors, so no pair is computed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Floats
from rayface.compiled import compiled

RATIO = 0.86
"""Affinity from which two groups are one person."""
PRIOR_PAIRS = 60.0
"""Pairs of images that the expected cohesion counts as."""
_PAIRS = 200_000


class Scale(NamedTuple):
    """Cosines that affinities are measured by.

    Attributes:
        base: cosine of two persons, the median of random pairs.
        expected: cohesion (above base) expected of a group, such that two single images reach RATIO at the threshold.
        prior: pairs of images that it counts as; infinity: the cohesion of groups is ignored, as in average linkage.
    """

    base: float
    expected: float
    prior: float


def scale_of(threshold: float, base: float, prior: float = PRIOR_PAIRS) -> Scale:
    """Return the scale by which two single images are one person from a threshold cosine.

    Raises:
        ValueError: the threshold is not above the cosine of two persons.
    """
    if threshold <= base:
        raise ValueError(f"threshold {threshold:.4f}: must be above {base:.4f}, the median cosine of two random images")
    return Scale(base, (threshold - base) / RATIO, prior)


def base_cosine(vectors: Floats, below: float = np.inf, seed: int = 0) -> float:
    """Return the median cosine of random pairs of the unit vectors (N, D): that of two persons, if there are many.

    Args:
        below: pairs from this cosine on are left out, as those of one person.
    """
    cosines = _random_cosines(vectors, seed)
    cosines = cosines[cosines < below]
    if len(cosines):
        return float(np.median(cosines))
    return 0.0 if below > 0 else below - 1  # all are one person


def pairs_below(vectors: Floats, below: float, seed: int = 0) -> tuple[int, float]:
    """Return how many pairs of the unit vectors (N, D) have a cosine below `below`, about, and their share of all."""
    cosines = _random_cosines(vectors, seed)
    share = float((cosines < below).mean()) if len(cosines) else 0.0
    return round(share * len(vectors) * (len(vectors) - 1) / 2), share


def _random_cosines(vectors: Floats, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).integers(0, len(vectors), (2, _PAIRS))
    rows = rows[:, rows[0] != rows[1]]
    blocks = np.array_split(rows, max(1, rows.shape[1] // 8192), axis=1)
    return np.concatenate(
        [np.einsum("nd,nd->n", *(vectors[side].astype(np.float32) for side in block)) for block in blocks]
    )


@compiled
def dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for column in range(a.shape[0]):
        total += a[column] * b[column]
    return total


@compiled
def cohesion(square: float, count: float, scale: Scale) -> float:
    """Return the cohesion of a group of `count` images whose sum of unit vectors has the squared length `square`."""
    if count < 2 or np.isinf(scale.prior):
        return scale.expected
    pairs = count * (count - 1) / 2
    own = (square - count) / (2 * pairs) - scale.base
    return max((pairs * own + scale.prior * scale.expected) / (pairs + scale.prior), 1e-6)


@compiled
def affinity(product: float, count: float, first: float, second: float, scale: Scale) -> float:
    """Return the affinity of two groups.

    Args:
        product: inner product of their sums of unit vectors.
        count: pairs of an image of each.
        first, second: their cohesions.
    """
    return (product / count - scale.base) / np.sqrt(first * second)
