"""Genuine pairs of a labelled set by identity, for the intervals of all-vs-all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Ints
from rayface.evaluation.intervals import IdentityBootstrap, Interval

_BLOCK = 2048  # images of an identity compared with all others of it at a time


def genuine_counts(
    embeddings: ArrayLike, labels: ArrayLike, thresholds: ArrayLike | Sequence[float], *, rows: Ints | None = None
) -> tuple[Ints, Ints]:
    """Count the genuine pairs of each identity with two images, and those above each threshold.

    Args:
        embeddings: (N, D) of length 1.
        labels: (N,).
        thresholds: (F,) cosines.
        rows: rows to compare; None: all.

    Returns:
        Accepted pairs (I, F) and all pairs (I,).
    """
    values, own = np.asarray(embeddings), np.asarray(labels)
    chosen = np.arange(len(own)) if rows is None else rows
    order = chosen[np.argsort(own[chosen], kind="stable")]
    ends = np.flatnonzero(np.diff(own[order])) + 1
    groups = [group for group in np.split(order, ends) if len(group) > 1]
    limits = np.asarray(thresholds, np.float64)
    accepted = np.array([_accepted(values[group], limits) for group in groups], np.int64).reshape(-1, len(limits))
    return accepted, np.array([len(group) * (len(group) - 1) // 2 for group in groups], np.int64)


def _accepted(embeddings: NDArray[np.floating], thresholds: NDArray[np.float64]) -> Ints:
    counts = np.zeros(len(thresholds), np.int64)
    for start in range(0, len(embeddings), _BLOCK):
        part = embeddings[start : start + _BLOCK]
        cosines = part @ embeddings[start:].T
        above_diagonal = np.sort(cosines[np.triu_indices(len(part), 1, len(embeddings) - start)])
        counts += len(above_diagonal) - np.searchsorted(above_diagonal, thresholds, side="right")
    return counts


def tar_intervals(
    embeddings: ArrayLike,
    labels: ArrayLike,
    tars: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    *,
    rows: Ints | None = None,
    replicates: int,
) -> tuple[Interval, ...]:
    """Return the intervals of TARs (F,) at fixed thresholds (F,), by a bootstrap over identities.

    The uncertainty of the thresholds, which come from very many impostor pairs, is left out.
    """
    accepted, pairs = genuine_counts(embeddings, labels, thresholds, rows=rows)
    if len(pairs) < 2:
        return (Interval(np.nan, np.nan),) * len(tars)
    bootstrap = IdentityBootstrap(np.arange(len(pairs)), replicates=replicates)
    found = bootstrap.ratios(accepted, pairs)
    return tuple(bootstrap.rate_interval(tar, found[:, k]) for k, tar in enumerate(tars.tolist()))
