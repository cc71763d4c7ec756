"""DiffProb: of images of an identity with similar true-class probabilities, keep one; a baseline for Face-NMS."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from rayface import config as configs
from rayface.arrays import Bools, Ints, check_offsets
from rayface.config import HeadConfig, PruneConfig
from rayface.curate.identities import Selection, check_keep, check_min_images
from rayface.curate.prune.class_probabilities import ClassProbabilities, class_probabilities
from rayface.curate.prune.dataset_stats import DatasetStats
from rayface.curate.prune.keep_ratio import search_threshold
from rayface.curate.prune.selection_method import Images, ThresholdMethod
from rayface.models.run_files import CONFIG
from rayface.storage import join, local_copy, path_of

_SMALLEST = -12.0  # exponent of the smallest threshold that is searched


@dataclass(frozen=True, kw_only=True)
class DiffProb(ThresholdMethod[ClassProbabilities]):
    """Drop images whose true-class probability is close to that of a kept image of their identity.

    Attributes:
        threshold: difference of two probabilities; below 0 all images are kept.
        min_images: minimum number of images to keep of an identity.
        head: run directory of the embedding model, for its class centers.
        scale: scale with which these were trained.
    """

    title: ClassVar[str] = "DiffProb"
    reason: ClassVar[str] = "as probable"
    keys: ClassVar[frozenset[str]] = frozenset({"head"})
    threshold: float = -1.0
    min_images: int = 1
    head: str
    scale: float

    @classmethod
    def from_settings(cls, settings: PruneConfig) -> Self:
        if settings.head is None:
            raise ValueError("prune.head: is not set: must be the run whose model embedded the images, for diffprob")
        path = path_of(settings.head) / CONFIG
        if not path.is_file():
            raise ValueError(
                f"prune.head: {settings.head}: is not a run directory: give the run of the embedding model"
            )
        return cls(
            threshold=-1.0 if settings.threshold is None else settings.threshold,
            min_images=settings.min_images,
            head=settings.head,
            scale=_scale(configs.load(file=local_copy(join(settings.head, CONFIG))).head),
        )

    def at(self, position: float) -> Self:
        return replace(self, threshold=threshold_at(position))

    def prepare(self, stats: DatasetStats) -> ClassProbabilities:
        return class_probabilities(stats, path_of(self.head), self.scale)

    def select(self, images: Images, prepared: ClassProbabilities) -> Selection:
        return diffprob(prepared.of(images), images.offsets, self.threshold, min_images=self.min_images)


def _scale(head: HeadConfig) -> float:
    if head.scale is not None:
        return head.scale
    from rayface.heads.from_config import scale_of  # PyTorch takes a second to import

    return scale_of(head)


def diffprob(probabilities: ArrayLike, offsets: ArrayLike, threshold: float, *, min_images: int = 5) -> Selection:
    """Keep an image only if its true-class probability differs by more than the threshold from the last kept one.

    Images of an identity are visited from the highest probability down, ties by index; the first is kept.

    Args:
        probabilities: (N,) in [0, 1], see `true_class_probabilities`.
        offsets: (I + 1,) first image of each identity, and N.
        threshold: below 0 all are kept.
        min_images: if fewer are kept, dropped images of the highest probability are kept too.

    Returns:
        kept (N,), score (N,) the probabilities, suppressed_by (N,) the image kept last before.

    Raises:
        ValueError: wrong shapes, NaN, probabilities outside [0, 1].
    """
    bounds = check_offsets(offsets)
    check_min_images(min_images)
    if np.isnan(threshold):
        raise ValueError("threshold nan: must be a difference of probabilities")
    values = np.asarray(probabilities, np.float64)
    if values.shape != (bounds[-1],):
        raise ValueError(f"probabilities shape {values.shape}: must be ({bounds[-1]},), one per image")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("probabilities: must be from 0 to 1")
    sizes = np.diff(bounds)
    order = np.lexsort((-values, np.repeat(np.arange(len(sizes)), sizes)))
    kept, by = np.zeros(len(values), bool), np.full(len(values), -1, np.int64)
    going = np.flatnonzero(sizes)
    last = np.full(len(sizes), -1, np.int64)
    for place in range(int(sizes.max(initial=0))):
        going = going[sizes[going] > place]
        images, before = order[bounds[going] + place], last[going]
        stays = values[before] - values[images] > threshold if place else np.ones(len(images), bool)
        kept[images], by[images] = stays, np.where(stays, -1, before)
        last[going[stays]] = images[stays]
    _bring_back(kept, by, order, bounds, min_images)
    return Selection(kept, values.astype(np.float32), by)


def diffprob_for_keep(
    probabilities: ArrayLike, offsets: ArrayLike, keep: float, *, min_images: int = 5, tolerance: float = 0.005
) -> tuple[Selection, float]:
    """Return DiffProb's selection of a share of all images, and its threshold, found by bisection.

    Raises:
        ValueError: see `diffprob`.
        UnreachableKeepError: no threshold keeps the share within the tolerance, or half an image.
    """
    check_keep(keep)
    if not np.size(probabilities):
        raise ValueError("probabilities: no images: cannot search a threshold")

    def share(position: float) -> float:
        found = diffprob(probabilities, offsets, threshold_at(position), min_images=min_images)
        return float(found.kept.mean())

    num_images = np.size(probabilities)
    position, _ = search_threshold(
        keep, share, share, num_images=num_images, tolerance=tolerance, threshold_at=threshold_at
    )
    threshold = threshold_at(position)
    return diffprob(probabilities, offsets, threshold, min_images=min_images), threshold


def threshold_at(position: float) -> float:
    """Return the threshold at a position from -1, which keeps the fewest images, to 1, which keeps all."""
    return -1.0 if position >= 1 else 10 ** (_SMALLEST * (position + 1) / 2)


def _bring_back(kept: Bools, by: Ints, order: Ints, bounds: Ints, min_images: int) -> None:
    """Keep dropped images of the highest probability if fewer than min_images are kept."""
    ranked = kept[order]
    so_far = np.r_[0, np.cumsum(ranked)]
    sizes = np.diff(bounds)
    missing = np.minimum(min_images, sizes) - (so_far[bounds[1:]] - so_far[bounds[:-1]])
    dropped = np.r_[0, np.cumsum(~ranked)]
    rank = dropped[1:] - np.repeat(dropped[bounds[:-1]], sizes)
    back = order[~ranked & (rank <= np.repeat(missing, sizes))]
    kept[back], by[back] = True, -1
