"""True acceptance rate at low false acceptance rates."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def tar_at_far(genuine: ArrayLike, impostor: ArrayLike, fars: ArrayLike | Sequence[float]) -> NDArray[np.float64]:
    """Return the true acceptance rate at given false acceptance rates.

    A pair is accepted if its score is *above* the threshold. The threshold of a FAR is the smallest impostor score at
    which the fraction of accepted impostors is at most that FAR (none if all may be accepted): of n impostors, the
    (k+1)st highest score, with the largest k such that k / n <= FAR. Impostors that tie with the threshold are
    rejected, and nothing is interpolated. A FAR below 1 / n allows no false acceptance.

    Args:
        genuine: scores of pairs of one person, any shape; higher is more similar.
        impostor: scores of pairs of two persons, any shape. Memory: one copy.
        fars: (F,) rates in [0, 1].

    Returns:
        (F,) float64, fraction of accepted genuine pairs.

    Raises:
        ValueError: no genuine or no impostor scores, a NaN score, or a rate outside [0, 1].
    """
    kept = np.asarray(genuine).ravel()
    refused = np.asarray(impostor).ravel()
    rates = np.asarray(fars, np.float64)
    for name, scores in (("genuine", kept), ("impostor", refused)):
        if scores.size == 0 or np.isnan(scores).any():
            raise ValueError(f"{name} has {scores.size} scores, it must have at least 1 and no NaN")
    if rates.ndim != 1 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"fars {rates.tolist()} must be a list of rates between 0 and 1")
    allowed = _allowed(rates, refused.size)
    places = refused.size - 1 - allowed[allowed < refused.size]  # ascending order
    ordered = np.partition(refused, np.unique(places)) if places.size else refused
    tar = np.ones(len(rates))
    tar[allowed < refused.size] = [np.count_nonzero(kept > ordered[place]) / kept.size for place in places]
    return tar


def _allowed(rates: NDArray[np.float64], num_impostors: int) -> NDArray[np.int64]:
    """Return the largest k with k / num_impostors <= rate; the floor of a float product can be off by one."""
    count = np.floor(rates * num_impostors).astype(np.int64)
    count += (count + 1) / num_impostors <= rates
    return count - (count / num_impostors > rates)
