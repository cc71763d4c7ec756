"""What the report of an evaluation shows beside figures: histograms of scores, and the worst pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_BINS = 60
_WORST = 12  # pairs of each kind


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreHistogram:
    """Numbers of genuine and impostor pairs, (bins,) each, between `edges` (bins + 1,)."""

    edges: NDArray[np.float64]
    genuine: NDArray[np.int64]
    impostor: NDArray[np.int64]

    @classmethod
    def of(cls, genuine: NDArray[np.floating], impostor: NDArray[np.floating]) -> ScoreHistogram:
        """Count n scores in about sqrt(n) bins, at most 60, from the lowest to the highest one."""
        bins = round(min(_MOST_BINS, max(1, (len(genuine) + len(impostor)) ** 0.5)))
        low = min(genuine.min(initial=1), impostor.min(initial=1))
        high = max(genuine.max(initial=-1), impostor.max(initial=-1))
        edges = np.linspace(low, max(high, low + 1e-6), bins + 1)
        return cls(edges=edges, genuine=np.histogram(genuine, edges)[0], impostor=np.histogram(impostor, edges)[0])

    def as_dict(self) -> dict[str, object]:
        """Return the values as JSON types."""
        return {name: getattr(self, name).tolist() for name in ("edges", "genuine", "impostor")}


@dataclass(frozen=True, kw_only=True)
class ScoredPair:
    """Two images of a protocol, by number and name, and their score."""

    a: int
    b: int
    score: float
    name_a: str
    name_b: str

    def as_dict(self) -> dict[str, object]:
        """Return names and score as JSON types."""
        return {"a": self.name_a, "b": self.name_b, "score": self.score}


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Name of the measured set, histogram of its scores, and its worst pairs, the worst first.

    Attributes:
        genuine: pairs of one person with the lowest scores.
        impostor: pairs of two persons with the highest scores.
    """

    name: str
    histogram: ScoreHistogram | None = None
    genuine: tuple[ScoredPair, ...] = ()
    impostor: tuple[ScoredPair, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the content as JSON types."""
        worst = {kind: [pair.as_dict() for pair in getattr(self, kind)] for kind in ("genuine", "impostor")}
        histogram = {} if self.histogram is None else {"histogram": self.histogram.as_dict()}
        return {"name": self.name, **histogram, "worst": worst}


def pictures_of(
    name: str,
    score: NDArray[np.float64],
    is_same: NDArray[np.bool_],
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    names: Sequence[str],
) -> Pictures:
    """Return the pictures of P scored pairs.

    Args:
        name: name of the set.
        score, is_same: (P,).
        a, b: (P,) numbers of the images.
        names: names of all images; empty: their numbers.
    """
    order = np.argsort(score, kind="stable")
    same = is_same[order]

    def pairs(places: NDArray[np.int64]) -> tuple[ScoredPair, ...]:
        return tuple(scored_pair(int(a[i]), int(b[i]), float(score[i]), names) for i in places.tolist())

    return Pictures(
        name=name,
        histogram=ScoreHistogram.of(score[is_same], score[~is_same]),
        genuine=pairs(order[same][:_WORST]),
        impostor=pairs(order[~same][::-1][:_WORST]),
    )


def scored_pair(a: int, b: int, score: float, names: Sequence[str]) -> ScoredPair:
    """Return a pair with the names of its images, or their numbers without names."""
    name_a, name_b = (names[i] if names else f"image {i}" for i in (a, b))
    return ScoredPair(a=a, b=b, score=score, name_a=name_a, name_b=name_b)
