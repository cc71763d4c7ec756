"""Exact order statistics of scores that are too many to keep."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_PENDING = 4_000_000  # scores held before equal ones are counted together


class Multiset:
    """Scores by value with their counts. Memory: the distinct values, and a few million scores.

    Float32 cosines in a narrow range have few distinct values, however many they are.
    """

    def __init__(self) -> None:
        self._values: NDArray[np.floating] = np.empty(0, np.float32)
        self._counts: NDArray[np.int64] = np.empty(0, np.int64)
        # One array: many small ones that live long, between the large ones of the tiles, would split the heap up.
        self._pending: NDArray[np.floating] = np.empty(0, np.float32)
        self._num_pending = 0

    def __len__(self) -> int:
        return int(self._counts.sum()) + self._num_pending

    def add(self, scores: NDArray[np.floating]) -> None:
        """Add scores (n,)."""
        if not len(self._pending) or scores.dtype != self._pending.dtype:
            self._merge()
            self._pending = np.empty(_PENDING, scores.dtype)
        for start in range(0, len(scores), _PENDING):
            part = scores[start : start + _PENDING]
            if self._num_pending + len(part) > _PENDING:
                self._merge()
            self._pending[self._num_pending : self._num_pending + len(part)] = part
            self._num_pending += len(part)

    def above(self, threshold: float) -> int:
        """Return the number of scores above a threshold."""
        self._merge()
        return int(self._counts[self._values > threshold].sum())

    def highest(self, rank: int) -> float:
        """Return the score at a rank, counted from 0 at the highest."""
        self._merge()
        place = np.searchsorted(self._counts[::-1].cumsum(), rank, side="right")
        return float(self._values[::-1][place])

    def _merge(self) -> None:
        if not self._num_pending:
            return
        new, counts = np.unique(self._pending[: self._num_pending], return_counts=True)
        self._num_pending = 0
        if len(self._values):
            both = np.concatenate([self._values, new])
            new, place = np.unique(both, return_inverse=True)
            counts = np.bincount(place, np.concatenate([self._counts, counts]), len(new)).astype(np.int64)
        self._values, self._counts = new, counts


@dataclass(kw_only=True)
class Bracket:
    """A range (low, high] that should hold the score at a rank.

    Attributes:
        rank: counted from 0 at the highest score.
        above: number of scores above `high`.
        inside: scores in the range.
    """

    rank: int
    low: float
    high: float
    above: int = 0
    inside: Multiset = field(default_factory=Multiset)

    def is_hit(self) -> bool:
        """Return whether the score at the rank is inside; False until all scores were counted."""
        return self.above <= self.rank < self.above + len(self.inside)

    def threshold(self) -> float:
        """Return the score at the rank."""
        return self.inside.highest(self.rank - self.above)
