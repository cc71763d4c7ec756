"""Face-NMS as a selection method: see rayface.curate.face_nms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.config import PruneConfig
from rayface.curate.cosines import unit_blocks
from rayface.curate.face_nms import MAX_COMPARED, suppress_many
from rayface.curate.identities import Selection
from rayface.curate.prune.dataset_stats import DatasetStats
from rayface.curate.prune.sampled_images import identity_counts
from rayface.curate.prune.selection_method import Images, ThresholdMethod


@dataclass(frozen=True, kw_only=True)
class FaceNMS(ThresholdMethod[NDArray[np.float64] | None]):
    """Drop images with a higher cosine to a kept image of their identity than the threshold.

    Attributes:
        threshold: cosine in (-1, 1]; at 1 nothing is dropped.
        min_images: minimum number of images to keep of an identity.
        global_weight: weight in the score of 1 - the cosine to the mean direction of all images.
    """

    title: ClassVar[str] = "Face-NMS"
    reason: ClassVar[str] = "too alike"
    keys: ClassVar[frozenset[str]] = frozenset({"global_weight"})
    threshold: float = 1.0
    min_images: int = 1
    global_weight: float = 0.0

    @classmethod
    def from_settings(cls, settings: PruneConfig) -> Self:
        return cls(
            threshold=1.0 if settings.threshold is None else settings.threshold,
            min_images=settings.min_images,
            global_weight=settings.global_weight,
        )

    def at(self, position: float) -> Self:
        return replace(self, threshold=position)

    def prepare(self, stats: DatasetStats) -> NDArray[np.float64] | None:
        return stats.mean_direction if self.global_weight else None

    def select(self, images: Images, prepared: NDArray[np.float64] | None) -> Selection:
        bonus = None
        if prepared is not None:
            along = np.concatenate([units @ prepared for units in unit_blocks(images.embeddings)])
            bonus = self.global_weight * (1 - along)
        return suppress_many(images.embeddings, images.offsets, self.threshold, min_images=self.min_images, bonus=bonus)

    def compared_in_part(self, sizes: Ints, core_set: Path) -> int:
        if sizes.max() <= MAX_COMPARED:
            return 0
        return int(np.count_nonzero(identity_counts(core_set)[2] > MAX_COMPARED))
