"""Estimate of label noise: images whose nearest neighbours contradict their label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.curate.cluster.metrics import NOISE
from rayface.curate.cluster.neighbours import Neighbours

_NEAREST = 10


@dataclass(frozen=True, kw_only=True)
class LabelNoise:
    """Share of images that `contradicted` finds, by the labels before and by the clusters after."""

    before: float
    after: float


def contradicted(neighbours: Neighbours, labels: Ints, threshold: float) -> NDArray[np.bool_]:
    """Return whether most of an image's (N,) nearest neighbours from the threshold cosine on have another label.

    Images of label -1 are left out, as images and as neighbours.
    """
    rows = neighbours.rows[:, :_NEAREST]
    others = np.where(rows >= 0, labels[rows], NOISE)
    near = (neighbours.cosines[:, :_NEAREST] >= threshold) & (others != NOISE) & (labels != NOISE)[:, None]
    same = (near & (others == labels[:, None])).sum(axis=1)
    return near.sum(axis=1) > 2 * same


def label_noise(neighbours: Neighbours, labels: Ints, clusters: Ints, threshold: float) -> LabelNoise:
    """Return the estimated noise of labels (N,), and that of clusters (N,) among the images that are in one."""
    after = contradicted(neighbours, clusters, threshold)[clusters != NOISE]
    return LabelNoise(
        before=float(contradicted(neighbours, labels, threshold).mean()),
        after=float(after.mean()) if len(after) else 0.0,
    )
