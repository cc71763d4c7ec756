"""DiffProb: of an identity's faces that a trained classifier is about as sure of, keep one; a baseline for Face-NMS."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Ints, check_embeddings, check_offsets
from rayface.curate.cosines import unit_rows
from rayface.curate.identities import Selection, check_keep, check_min_images
from rayface.curate.prune.keep_ratio import search_threshold

Centers = Callable[[int, int], torch.Tensor]  # rows [first, last) of the class centers, (n, D)

_ROWS, _CLASSES = 1024, 8192  # a block of logits: 32 MB
_SMALLEST = -12.0  # exponents of thresholds that are searched


def true_class_probabilities(
    centers: Centers, num_classes: int, embeddings: ArrayLike, labels: ArrayLike, *, scale: float = 64.0
) -> NDArray[np.float64]:
    """Return the softmax probability of each face's own class, without a margin.

    p_i = exp(s cos(f_i, w_y)) / sum_j exp(s cos(f_i, w_j)) with the scale s that the centers w were trained with.

    Args:
        centers: reads class centers of any norm; `training.checkpoint_tools.saved_centers` gives those of a checkpoint.
        embeddings: (N, D) of any norm, of the model that the centers are of; may be a memory map.
        labels: (N,) below num_classes.
    Returns:
        (N,). Time N * num_classes * D, in float32. Memory: 12 bytes for each face, a block of 8,192 centers and of
        logits; embeddings are read once for each block of centers.
    Raises:
        ValueError: wrong shapes; a label without a center; a scale that is not positive.
    """
    values, own = check_embeddings(embeddings), np.asarray(labels)
    if own.shape != (len(values),) or own.dtype.kind not in "iu":
        raise ValueError(f"labels shape {own.shape} dtype {own.dtype}: must be ({len(values)},) integers")
    if len(own) and not 0 <= own.min() <= own.max() < num_classes:
        raise ValueError(f"labels from {own.min()} to {own.max()}: must be below {num_classes}, the class centers")
    if not scale > 0:
        raise ValueError(f"scale {scale}: must be above 0, it is that of the training")
    true, total = torch.zeros(len(values)), torch.full((len(values),), -torch.inf)
    for first in range(0, num_classes, _CLASSES):
        last = min(first + _CLASSES, num_classes)
        block = torch.nn.functional.normalize(centers(first, last).float(), dim=1)
        for start in range(0, len(values), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(values)))
            logits = torch.from_numpy(unit_rows(values, rows).astype(np.float32)) @ block.T * scale
            here = np.flatnonzero((own[rows] >= first) & (own[rows] < last))
            true[rows[here]] = logits[here, own[rows[here]] - first]
            total[rows] = torch.logaddexp(total[rows], logits.logsumexp(dim=1))
    return (true.double() - total.double()).exp().clamp(max=1).numpy()


def diffprob(probabilities: ArrayLike, offsets: ArrayLike, threshold: float, *, min_images: int = 5) -> Selection:
    """Keep a face only if its true-class probability differs by more than the threshold from the last kept one.

    Of every identity from the highest probability down, ties by index; the first is kept.

    Args:
        probabilities: (N,) in [0, 1], see `true_class_probabilities`.
        offsets: (I + 1,) where each identity begins, and N.
        threshold: below 0 all are kept.
        min_images: where fewer are left, the dropped ones of the highest probability come back.
    Returns:
        kept (N,), score (N,) the probabilities, suppressed_by (N,) the last face that was kept before.
    Raises:
        ValueError: wrong shapes, NaN, probabilities outside [0, 1].
    """
    bounds = check_offsets(offsets)
    check_min_images(min_images)
    values = np.asarray(probabilities, np.float64)
    if values.shape != (bounds[-1],):
        raise ValueError(f"probabilities shape {values.shape}: must be ({bounds[-1]},), one for each face")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("probabilities: must be from 0 to 1")
    sizes = np.diff(bounds)
    order = np.lexsort((-values, np.repeat(np.arange(len(sizes)), sizes)))
    kept, by = np.zeros(len(values), bool), np.full(len(values), -1, np.int64)
    going = np.flatnonzero(sizes)
    last = np.full(len(sizes), -1, np.int64)
    for place in range(int(sizes.max(initial=0))):
        going = going[sizes[going] > place]
        faces, before = order[bounds[going] + place], last[going]
        stays = values[before] - values[faces] > threshold if place else np.ones(len(faces), bool)
        kept[faces], by[faces] = stays, np.where(stays, -1, before)
        last[going[stays]] = faces[stays]
    _bring_back(kept, by, order, bounds, min_images)
    return Selection(kept, values.astype(np.float32), by)


def diffprob_for_keep(
    probabilities: ArrayLike, offsets: ArrayLike, keep: float, *, min_images: int = 5, tolerance: float = 0.005
) -> tuple[Selection, float]:
    """Return what DiffProb keeps with the threshold, found by bisection, that keeps a share of all faces, and it.

    Raises:
        ValueError: as `diffprob`; a share that no threshold reaches within the tolerance.
    """
    check_keep(keep)

    def share(place: float) -> float:
        found = diffprob(probabilities, offsets, threshold_at(place), min_images=min_images)
        return float(found.kept.mean())

    place, _ = search_threshold(keep, share, share, tolerance=tolerance)
    threshold = threshold_at(place)
    return diffprob(probabilities, offsets, threshold, min_images=min_images), threshold


def threshold_at(place: float) -> float:
    """Return the threshold at a place from -1, which keeps the least, to 1, which keeps all."""
    return -1.0 if place >= 1 else 10 ** (_SMALLEST * (place + 1) / 2)


def _bring_back(kept: NDArray[np.bool_], by: Ints, order: Ints, bounds: Ints, min_images: int) -> None:
    """Keep the dropped faces of the highest probability, where fewer than min_images are left."""
    ranked = kept[order]
    so_far = np.r_[0, np.cumsum(ranked)]
    sizes = np.diff(bounds)
    missing = np.minimum(min_images, sizes) - (so_far[bounds[1:]] - so_far[bounds[:-1]])
    dropped = np.r_[0, np.cumsum(~ranked)]
    rank = dropped[1:] - np.repeat(dropped[bounds[:-1]], sizes)
    back = order[~ranked & (rank <= np.repeat(missing, sizes))]
    kept[back], by[back] = True, -1
