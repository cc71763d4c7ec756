"""Confidence intervals of evaluation figures: a bootstrap over identities, not over pairs.

Pairs that share an identity are not independent: one person who is hard to recognise fails in all of them. The *vertex
bootstrap* (Snijders and Borgatti, 1999; for face verification: Fogliato et al., 2024) therefore draws the identities,
the vertices of the graph of pairs, with replacement. A pair of two identities has the product of their numbers of draws
as its weight, a pair of one identity the number of draws of it. The product is conservative (Owen and Eckles, 2012):
where hardly any pairs share an identity, the intervals of impostor figures are up to 1.7 times as wide as necessary.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Ints, identities_of

CONFIDENCE = 0.95
REPLICATES = 1000
_MOST_WEIGHTS = 10**9  # weights of all replicates, some 20 s
_BLOCK = 4_000_000  # weights computed at a time, 32 MB

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Lower and upper confidence limit; NaN if there are fewer than two identities."""

    low: float
    high: float

    def as_list(self) -> list[float | None]:
        """Return the limits as JSON types; None for one that is not finite."""
        return [float(limit) if np.isfinite(limit) else None for limit in self]


class AtFar(NamedTuple):
    """TAR and threshold at F rates, (F,), or of R replicates, (R, F).

    A replicate without genuine or without impostor pairs has NaN.
    """

    tar: Floats
    threshold: Floats


class FarIntervals(NamedTuple):
    """Intervals of TAR and threshold by rate, such as 1e-03."""

    tar: dict[str, Interval]
    threshold: dict[str, Interval]

    def figures(self) -> dict[str, dict[str, list[float | None]]]:
        """Return the intervals by name, as JSON types."""
        return {
            "tar_at_far_interval": {far: interval.as_list() for far, interval in self.tar.items()},
            "threshold_at_far_interval": {far: interval.as_list() for far, interval in self.threshold.items()},
        }


class IdentityBootstrap:
    """Replicates of a list of pairs, or of single images, by drawing identities with replacement.

    The same identities, number and seed give the same draws, so figures of two models on one list are paired.

    Attributes:
        num_identities: number of identities that are drawn from.
    """

    def __init__(
        self, a: ArrayLike, b: ArrayLike | None = None, *, replicates: int = REPLICATES, seed: int = 0
    ) -> None:
        """Prepare the draws.

        Args:
            a, b: (N,) identities of a pair's images, all numbers or all strings; only `a` for single images.
            replicates: number of draws, R; of a list of more than a million pairs fewer, but at least 100.

        Raises:
            ValueError: shapes do not fit, or an identity is missing.
        """
        first, kind = identities_of(a, "a")
        second, other_kind = (first, kind) if b is None else identities_of(b, "b")
        if kind != other_kind:
            raise ValueError(f"identities are {kind} in a and {other_kind} in b: must be of one type")
        if first.ndim != 1 or first.shape != second.shape or not len(first):
            raise ValueError(f"identities have shapes {first.shape} and {second.shape}: must be (N,) each, N above 0")
        names, numbers = np.unique(np.concatenate([first, second]), return_inverse=True)
        self.num_identities = len(names)
        self._a, self._b = numbers[: len(first)], numbers[len(first) :]
        self._replicates, self._seed = min(replicates, max(100, _MOST_WEIGHTS // len(first))), seed

    def weights(self) -> Iterator[Floats]:
        """Yield the weights of the pairs in blocks of replicates, (r, N); in total R rows."""
        random = np.random.default_rng(self._seed)
        n = self.num_identities
        rows = max(1, _BLOCK // max(n, len(self._a)))
        two = self._a != self._b
        for start in range(0, self._replicates, rows):
            r = min(rows, self._replicates - start)
            drawn = random.integers(0, n, (r, n)) + n * np.arange(r)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)
            weights = counts[:, self._a]
            weights[:, two] *= counts[:, self._b[two]]
            yield weights

    def shares(self, hits: ArrayLike, groups: Ints | None = None, kinds: ArrayLike | None = None) -> Floats:
        """Return the weighted share of hits in each replicate, (R,).

        Args:
            hits: (N,) bool, for example whether a pair is classified correctly.
            groups: (N,) number of each pair's fold: the share is the mean over the folds, each as large as another.
            kinds: (N,) bool, whether a pair is genuine. Each kind keeps its part of the share: drawing identities
                changes the numbers of the two kinds, in small folds to none, which the list of pairs does not.
        """
        hit = np.asarray(hits, np.float64)
        folds = np.zeros(len(hit), np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
        kind = np.zeros(len(hit), bool) if kinds is None else np.asarray(kinds, bool)
        part = 1 / (np.bincount(folds)[folds] * (folds.max() + 1))
        parts = np.stack([part * (kind == one) for one in np.unique(kind)], axis=1)
        found = []
        with np.errstate(invalid="ignore"):
            for weights in self.weights():
                found.append(weights @ (parts * hit[:, None]) / (weights @ parts) @ parts.sum(0))
        return np.concatenate(found)

    def ratios(self, hits: ArrayLike, totals: ArrayLike) -> Floats:
        """Return sums of hits (N, F) divided by the sum of totals (N,) in each replicate, (R, F)."""
        numerators, denominators = np.asarray(hits, np.float64), np.asarray(totals, np.float64)
        with np.errstate(invalid="ignore"):
            found = [weights @ numerators / (weights @ denominators)[:, None] for weights in self.weights()]
        return np.concatenate(found)

    def at_far(self, score: ArrayLike, is_same: ArrayLike, fars: ArrayLike) -> AtFar:
        """Return TAR and threshold of every replicate at each FAR, (R, F), by the rule of `tar_at_far`.

        The threshold is that of the replicate, so the intervals include its uncertainty.
        """
        curve, rates = _SortedScores(score, is_same), np.asarray(fars, np.float64)
        found = [curve.at_far(weights, rates) for weights in self.weights()]
        return AtFar(np.concatenate([part.tar for part in found]), np.concatenate([part.threshold for part in found]))

    def far_intervals(self, score: ArrayLike, is_same: ArrayLike, tars: Mapping[str, float]) -> FarIntervals:
        """Return the intervals of TAR at FAR; `tars` are the TARs of all pairs, by rate, such as 1e-03."""
        found = self.at_far(score, is_same, [float(far) for far in tars])
        return FarIntervals(
            {far: self.rate_interval(tar, found.tar[:, k], is_same) for k, (far, tar) in enumerate(tars.items())},
            {far: self.interval(found.threshold[:, k]) for k, far in enumerate(tars)},
        )

    def num_counted(self, counted: ArrayLike | None = None) -> int:
        """Return the number of identities of some pairs or images, (N,) bool; None: of all."""
        if counted is None:
            return self.num_identities
        rows = np.asarray(counted, bool)
        return len(np.union1d(self._a[rows], self._b[rows]))

    def interval(self, replicates: Floats, counted: ArrayLike | None = None) -> Interval:
        """Return the percentiles of replicates (R,) of a threshold or of a difference; `counted`: as for a rate."""
        return percentiles(replicates) if self.num_counted(counted) > 1 else Interval(np.nan, np.nan)

    def rate_interval(self, rate: float, replicates: Floats, counted: ArrayLike | None = None) -> Interval:
        """Return the interval of a rate: the percentiles of its replicates (R,).

        A rate of 0 or 1 has no variation to resample: its interval is the exact one of Clopper and Pearson (1934) for
        as many independent trials as identities that the rate counts.

        Args:
            counted: (N,) bool, the pairs or images that the rate is a fraction of, such as the genuine pairs of a TAR;
                None: all. NaN if they are of fewer than two identities.
        """
        trials = self.num_counted(counted)
        if trials < 2 or not np.isfinite(rate):
            return Interval(np.nan, np.nan)
        widest = ((1 - CONFIDENCE) / 2) ** (1 / trials)
        if rate >= 1:
            return Interval(widest, 1.0)
        if rate <= 0:
            return Interval(0.0, 1 - widest)
        return percentiles(replicates)


class _SortedScores:
    """Scores in descending order, and for each impostor score how many genuine scores are above it."""

    def __init__(self, score: ArrayLike, is_same: ArrayLike) -> None:
        scores, same = np.asarray(score, np.float64), np.asarray(is_same, bool)
        descending = np.argsort(-scores, kind="stable")
        self._genuine, self._impostor = descending[same[descending]], descending[~same[descending]]
        self._thresholds = np.append(scores[self._impostor], -np.inf)
        self._genuine_above = np.searchsorted(-scores[self._genuine], -self._thresholds)

    def at_far(self, weights: Floats, fars: Floats) -> AtFar:
        accepted, genuine = _cumulative(weights[:, self._impostor]), _cumulative(weights[:, self._genuine])
        with np.errstate(invalid="ignore"):
            # Scores that tie are one threshold, whichever of them is found.
            far = accepted / accepted[:, -1:]
            tar = genuine / genuine[:, -1:]
        # An impostor of weight 0 has the FAR of the next one: the lowest admissible threshold has a weight above 0.
        place = np.stack([np.searchsorted(row, fars, side="right") for row in far]) - 1
        rows = np.arange(len(weights))[:, None]
        undefined = (place < 0) | np.isnan(tar[:, -1:])
        return AtFar(
            np.where(undefined, np.nan, tar[rows, self._genuine_above[place]]),
            np.where(undefined, np.nan, self._thresholds[place]),
        )


def _cumulative(weights: Floats) -> Floats:
    """Return the sums of the first 0, 1, ..., n weights, (r, n + 1)."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def percentiles(replicates: Floats) -> Interval:
    """Return the interval between the percentiles of replicates (R,), NaN left out."""
    found = replicates[~np.isnan(replicates)]
    if not len(found):
        return Interval(np.nan, np.nan)
    # Replicates are values of a discrete figure: no interpolation, which -inf as a threshold would turn into NaN.
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="closest_observation")
    return Interval(float(low), float(high))
