"""Random selection, the baseline of all methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Ints, group_offsets
from rayface.config import PruneConfig
from rayface.curate.identities import Selection
from rayface.curate.prune.methods.quota import QuotaMethod, Quotas, wanted_share
from rayface.curate.prune.selection_method import Images

Words = TypeVar("Words", np.uint64, NDArray[np.uint64])


@dataclass(frozen=True, kw_only=True)
class Random(QuotaMethod):
    """Keep random images of every identity; the same seed keeps the same ones."""

    title: ClassVar[str] = "random"
    reason: ClassVar[str] = "not drawn"
    seed: int = 0

    @classmethod
    def from_settings(cls, settings: PruneConfig) -> Self:
        return cls(keep=wanted_share(settings), min_images=settings.min_images, seed=settings.seed)

    def select(self, images: Images, prepared: Quotas) -> Selection:
        return random(images.labels, prepared.of(images), seed=self.seed)


def random(labels: ArrayLike, quota: Ints, *, seed: int = 0) -> Selection:
    """Keep random images.

    Args:
        labels: (N,), those of an identity adjacent.
        quota: (I,) images to keep of each identity, in their order; see `quotas`.
        seed: the draw of an identity depends only on seed, label and its number of images.

    Returns:
        kept (N,), score (N,) drawn in [0, 1) for each image, suppressed_by (N,) all -1.

    Raises:
        ValueError: labels that are not grouped.
    """
    bounds = group_offsets(labels)
    identity = np.repeat(np.arange(len(quota)), np.diff(bounds))
    place = np.arange(len(identity)) - bounds[identity]
    words = _mixed(_mixed(_mixed(np.uint64(seed)) ^ np.asarray(labels, np.uint64)) ^ place.astype(np.uint64))
    score = ((words >> np.uint64(40)) / 2**24).astype(np.float32)
    order = np.lexsort((-score, identity))
    kept = np.empty(len(score), bool)
    kept[order] = place < quota[identity]
    return Selection(kept, score, np.full(len(score), -1, np.int64))


def _mixed(words: Words) -> Words:
    """The output function of splitmix64 (Steele et al. 2014): every bit depends on every bit."""
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))
