"""Methods that keep the same share of every identity, and the quota of each identity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayface.arrays import Ints
from rayface.config import PruneConfig
from rayface.curate.identities import check_keep, check_min_images
from rayface.curate.prune.dataset_stats import DatasetStats
from rayface.curate.prune.selection_method import Images, SelectionMethod


@dataclass(frozen=True, kw_only=True)
class Quotas:
    """Images to keep of each identity: `counts` (I,) of `labels` (I,), rising."""

    labels: Ints
    counts: Ints

    def of(self, images: Images) -> Ints:
        """Return the quotas of the identities of `images`, in their order."""
        return self.counts[np.searchsorted(self.labels, images.labels[images.offsets[:-1]])]


@dataclass(frozen=True, kw_only=True)
class QuotaMethod(SelectionMethod[Quotas]):
    """A method that keeps a quota of every identity.

    Attributes:
        keep: share of all images, in (0, 1].
        min_images: minimum number of images to keep of an identity.
    """

    keep: float
    min_images: int = 1

    def prepare(self, stats: DatasetStats) -> Quotas:
        return Quotas(labels=stats.labels, counts=quotas(stats.sizes, self.keep, self.min_images))


def wanted_share(settings: PruneConfig) -> float:
    """Return `prune.keep`.

    Raises:
        ValueError: a threshold is set instead.
    """
    if settings.keep is None:
        raise ValueError(f"prune.threshold: {settings.method} has no threshold: set prune.keep, for example 0.6")
    return settings.keep


def quotas(sizes: Ints, keep: float, min_images: int = 1) -> Ints:
    """Return how many images of each identity to keep, (I,): in total round(keep * images).

    Every identity keeps the same share of its images, rounded up or down, but at least min_images (or all of them); the
    other identities keep fewer to compensate. If the minimum exceeds `keep`, only the minimum is kept.

    Raises:
        ValueError: keep outside (0, 1], or min_images below 1.
    """
    check_keep(keep)
    check_min_images(min_images)
    least = np.minimum(sizes, min_images)
    total = round(keep * int(sizes.sum()))
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        low, high = (share, high) if np.maximum(least, share * sizes).sum() <= total else (low, share)
    wanted = np.maximum(least, low * sizes)
    count = wanted.astype(np.int64)
    most_cut = np.argsort(count - wanted, kind="stable")
    count[most_cut[: max(0, total - int(count.sum()))]] += 1
    return count
