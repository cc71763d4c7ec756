"""1:1 verification: accuracy over ten folds, and the ROC curve."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import identities_of

NUM_FOLDS = 10
THRESHOLDS = np.arange(0, 4, 0.01)  # squared distances of unit vectors
_BLOCK = 65_536  # pairs per block


def ten_fold_accuracy(
    a: ArrayLike, b: ArrayLike, is_same: ArrayLike, fold: ArrayLike | None = None
) -> tuple[float, float]:
    """Return the cross-validated verification accuracy of pairs.

    The protocol of LFW, CFP-FP, AgeDB-30, CALFW and CPLFW: a pair is classified as the same person if the squared
    distance of its unit embeddings is below a threshold. The threshold, one of 0, 0.01, ..., 3.99, is the (lowest) best
    one on all folds except the tested one.

    Args:
        a: (N, D) embeddings; raw ones are normalised.
        b: (N, D) embeddings to compare with.
        is_same: (N,) bool, or 0 and 1: ground truth.
        fold: (N,) the fold of each pair, numbers or strings; None: tenths of the pairs in order.

    Returns:
        Mean and standard deviation of the folds' accuracies.

    Raises:
        ValueError: shapes do not fit, an embedding is zero or not finite, is_same holds another value, or there are
            fewer than two folds.
    """
    first, second, same = _checked(a, b, is_same)
    return fold_accuracy(((first - second) ** 2).sum(1), same, fold)


def pair_scores(
    embeddings: ArrayLike, a: NDArray[np.int64], b: NDArray[np.int64], done: Callable[[], None] = lambda: None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return squared distance and cosine of pairs of embeddings, computed in blocks to bound memory.

    Args:
        embeddings: (n, D), raw or normalised.
        a, b: (N,) rows of `embeddings`.
        done: called after every block.

    Returns:
        (N,) float64 each.

    Raises:
        ValueError: an embedding is zero or not finite.
    """
    unit = normalised(np.asarray(embeddings, np.float64))
    distance, cosine = np.empty(len(a)), np.empty(len(a))
    for start in range(0, len(a), _BLOCK):
        part = slice(start, start + _BLOCK)
        first, second = unit[a[part]], unit[b[part]]
        distance[part], cosine[part] = ((first - second) ** 2).sum(1), (first * second).sum(1)
        done()
    return distance, cosine


def fold_accuracy(
    distance: NDArray[np.float64], same: NDArray[np.bool_], fold: ArrayLike | None = None
) -> tuple[float, float]:
    """Return the `ten_fold_accuracy` of squared distances (N,)."""
    accuracy = fold_decisions(distance, same, fold)[1]
    return float(accuracy.mean()), float(accuracy.std())


def fold_decisions(
    distance: NDArray[np.float64], same: NDArray[np.bool_], fold: ArrayLike | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Classify the pairs of each fold by the best threshold on the other folds.

    Returns:
        Whether a pair is accepted as the same person, (N,), and the accuracy of each fold, (F,).
    """
    folds = _tenths(len(same)) if fold is None else np.unique(identities_of(fold, "fold")[0], return_inverse=True)[1]
    if folds.shape != same.shape or not len(folds):
        raise ValueError(f"fold has shape {folds.shape}, it must be one fold per pair: {same.shape}, at least 1")
    num_folds = int(folds.max()) + 1
    if num_folds < 2:
        raise ValueError("fold must name at least 2 folds: the threshold comes from the pairs outside the fold")
    # Index of the lowest threshold that classifies the pair as the same person.
    called_same = np.searchsorted(THRESHOLDS, distance, side="right")
    counts = np.zeros((2, num_folds, len(THRESHOLDS) + 1), np.int64)
    np.add.at(counts, (same.astype(int), folds, called_same), 1)
    num_called = counts[:, :, :-1].cumsum(2)
    num_right = num_called[1] + counts[0].sum(1, keepdims=True) - num_called[0]  # (folds, thresholds)
    best = (num_right.sum(0) - num_right).argmax(1)
    return called_same <= best[folds], num_right[np.arange(num_folds), best] / np.bincount(folds)


def roc(
    a: ArrayLike, b: ArrayLike, is_same: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the ROC curve of pairs: FAR and TAR over all thresholds.

    A pair is accepted if its cosine is at least the threshold.

    Args:
        a: (N, D) embeddings, raw or normalised.
        b: (N, D) embeddings to compare with.
        is_same: (N,) bool, ground truth; both values must occur.

    Returns:
        FAR, TAR and thresholds, (M,) each: from (0, 0) at infinity, through every occurring cosine, to (1, 1).

    Raises:
        ValueError: shapes do not fit, an embedding is zero or not finite, or there are no genuine or impostor pairs.
    """
    first, second, same = _checked(a, b, is_same)
    return roc_of((first * second).sum(1), same)


def roc_of(
    cosine: NDArray[np.float64], same: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the `roc` of cosines (N,)."""
    if same.all() or not same.any():
        raise ValueError("is_same must hold both genuine and impostor pairs: a ROC compares the two")
    order = np.argsort(-cosine, kind="stable")
    cosine, same = cosine[order], same[order]
    last_of_ties = np.append(cosine[1:] != cosine[:-1], True)
    tar = np.append(0, same.cumsum()[last_of_ties]) / same.sum()
    far = np.append(0, (~same).cumsum()[last_of_ties]) / (~same).sum()
    return far, tar, np.append(np.inf, cosine[last_of_ties])


def best_threshold(score: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """Return the threshold of the highest accuracy on all pairs (N,): accepted is score > threshold.

    Midway between two scores; the lowest of equally good ones.
    """
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    num_right = np.append(0, np.where(same[order], 1, -1).cumsum())  # of the first n accepted, minus a constant
    places = np.flatnonzero(np.append(True, np.append(ordered[1:] != ordered[:-1], True)))  # ties are accepted together
    best = places[len(places) - 1 - num_right[places][::-1].argmax()]
    low = ordered[best] if best < len(ordered) else ordered[-1] - 1
    high = ordered[best - 1] if best else ordered[0] + 1
    return float((low + high) / 2)


def _tenths(num_pairs: int) -> NDArray[np.intp]:
    """Return ten folds in the order of the pairs; the first ones have one more pair if needed."""
    if num_pairs < NUM_FOLDS:
        raise ValueError(f"there are {num_pairs} pairs, {NUM_FOLDS} folds need {NUM_FOLDS}: give more or name folds")
    sizes = [len(part) for part in np.array_split(np.arange(num_pairs), NUM_FOLDS)]
    return np.repeat(np.arange(NUM_FOLDS), sizes)


def _checked(
    a: ArrayLike, b: ArrayLike, is_same: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    first, second, same = np.asarray(a, np.float64), np.asarray(b, np.float64), np.asarray(is_same)
    if first.ndim != 2 or first.shape != second.shape or same.shape != first.shape[:1]:
        raise ValueError(
            f"a, b and is_same have shapes {first.shape}, {second.shape}, {same.shape}; "
            "they must be (N, D), (N, D) and (N,)"
        )
    if same.dtype.kind not in "biuf" or not ((same == 0) | (same == 1)).all():
        raise ValueError("is_same: must be True and False, or 1 and 0")  # to NumPy, any text is True, and so is NaN
    return normalised(first), normalised(second), same.astype(bool)


def normalised(embeddings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `embeddings` (N, D) with rows normalised to length 1.

    Raises:
        ValueError: a row is zero or not finite.
    """
    with np.errstate(over="ignore"):  # reported as an infinite length
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise ValueError(f"embedding {bad[0]} has length {norms[bad[0], 0]}, it must be finite and above 0")
    return embeddings / norms


def thinned(far: NDArray[np.float64], tar: NDArray[np.float64], points: int = 500) -> dict[str, list[float]]:
    """Return at most `points` points of a ROC curve from FAR 0, evenly spaced in log FAR, by name: "far", "tar".

    With millions of pairs, points spaced evenly in FAR would omit everything below a FAR of 1 / points.
    """
    grid = np.geomspace(far[far > 0].min(initial=1.0), 1.0, points - 2)
    keep = np.unique(np.r_[0, np.searchsorted(far, np.r_[0.0, grid], side="right") - 1])
    return {"far": [float(x) for x in far[keep]], "tar": [float(x) for x in tar[keep]]}
