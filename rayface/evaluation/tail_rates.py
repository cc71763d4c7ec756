"""Rates of acceptance over all pairs, as they were measured."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.evaluation.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class TailRates:
    """TAR at FAR over all unordered pairs of images.

    Attributes:
        tar: (F,) fraction of accepted genuine pairs; NaN without genuine or without impostor pairs.
        threshold: (F,) accepted is score > threshold; -inf if all may be accepted, NaN as `tar`.
        num_genuine, num_impostor: number of pairs.
        tar_intervals: intervals of the TARs at these thresholds, F of them; None without.
    """

    tar: NDArray[np.float64]
    threshold: NDArray[np.float64]
    num_genuine: int
    num_impostor: int
    tar_intervals: tuple[Interval, ...] | None = None
