"""Error versus discard: how errors fall as images of low quality are rejected, by the norm of the raw embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.evaluation.pair_scores import PairScores

REJECTED = np.linspace(0, 0.5, 11)
_FARS = ("1e-03", "1e-02", "1e-01")  # the first one with a threshold is taken


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscardCurve:
    """Error versus discard characteristic (EDC, ISO/IEC 29794-1) of pairs.

    Attributes:
        rejected: fractions of the pairs that are rejected, those of lowest quality first, (K,).
        fnmr: false non-match rate of the remaining genuine pairs at the threshold of `far` on all pairs, (K,).
        error: fraction of the remaining pairs that are classified wrongly at the thresholds of their folds, (K,).
        far: the false acceptance rate of the threshold.
    """

    rejected: NDArray[np.float64]
    fnmr: NDArray[np.float64]
    error: NDArray[np.float64]
    far: float

    def as_dict(self) -> dict[str, object]:
        """Return the points as JSON types; None where no pair is left."""
        points = {
            name: [None if np.isnan(value) else float(value) for value in getattr(self, name)]
            for name in ("rejected", "fnmr", "error")
        }
        return {"far": self.far, **points}


def error_versus_discard(
    quality: ArrayLike, score: ArrayLike, is_same: ArrayLike, is_right: ArrayLike, *, threshold: float, far: float
) -> DiscardCurve:
    """Measure the errors of the pairs that remain when those of lowest quality are rejected.

    Args:
        quality: (P,) quality of a pair: the lower of its two images'. Of equal ones, the first is rejected first.
        score: (P,) cosines.
        is_same: (P,) ground truth.
        is_right: (P,) whether the pair is classified correctly.
        threshold: threshold of the false non-match rate; accepted is score > threshold.
        far: the rate that the threshold is for.
    """
    same, right = np.asarray(is_same, bool), np.asarray(is_right, bool)
    order = np.argsort(np.asarray(quality, np.float64), kind="stable")
    missed = (same & (np.asarray(score) <= threshold))[order]
    # Sums over the pairs from the k-th worst to the best.
    left = [np.append(np.cumsum(values[::-1])[::-1], 0) for values in (missed, same[order], ~right[order])]
    start = np.floor(REJECTED * len(order) + 1e-9).astype(np.int64)
    with np.errstate(invalid="ignore"):
        fnmr = left[0][start] / left[1][start]
        error = left[2][start] / (len(order) - start)
    return DiscardCurve(rejected=REJECTED, fnmr=fnmr, error=error, far=far)


def discard_curve(scores: PairScores, thresholds: Mapping[str, float]) -> tuple[DiscardCurve | None, str]:
    """Return the curve of a list of pairs by the norms of their images, or None and the reason.

    Args:
        thresholds: cosine thresholds by false acceptance rate, such as 1e-03.
    """
    if np.isnan(scores.quality).any():
        return None, "the norms of the raw embeddings are not known: embed the images again"
    if np.ptp(scores.quality) <= 1e-5 * scores.quality.max():
        return None, f"all images have the norm {scores.quality[0]:.4g}: the model normalises its output"
    far = next((far for far in _FARS if far in thresholds), None)
    if far is None:
        return None, "there are too few impostor pairs for a FAR of 0.1"
    curve = error_versus_discard(
        scores.quality, scores.score, scores.is_same, scores.is_right, threshold=thresholds[far], far=float(far)
    )
    return curve, ""
