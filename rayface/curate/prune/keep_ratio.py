"""The threshold with which Face-NMS keeps a wanted share of the faces."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from rayface.arrays import Floats, Ints, check_embeddings, check_offsets
from rayface.curate.face_nms import suppress_many
from rayface.curate.identities import BLOCK_BYTES, check_keep, check_min_images

_LOWEST = -1 + 1e-6
_HALVINGS = 24
_CORRECTIONS = 2


def threshold_for_keep(
    embeddings: ArrayLike,
    offsets: ArrayLike,
    keep: float,
    *,
    min_images: int = 1,
    tolerance: float = 0.005,
    sample_faces: int = 50_000,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[float, float]:
    """Return the threshold with which `suppress_many` keeps the share `keep` of all faces, and the share it does keep.

    Args:
        embeddings, offsets, min_images, block_bytes: as of `suppress_many`.
        keep: share of the faces, in (0, 1].
        tolerance: how far the share may be off.
        sample_faces: about how many faces, of identities chosen by chance, are searched; they are copied. Identities of
            more than a tenth of that are left out; where there are no others, all faces are searched.
        seed: of the sample.
    Raises:
        ValueError: wrong input; a share that no threshold reaches within the tolerance.
    """
    values = check_embeddings(embeddings)
    bounds = check_offsets(offsets, len(values))
    check_min_images(min_images)
    check_keep(keep)
    if len(values) == 0:
        raise ValueError("embeddings: no faces; a threshold cannot be found without any")
    sample, sample_bounds = _sample(values, bounds, sample_faces, seed)

    def share(faces: Floats, ends: Ints, threshold: float) -> float:
        found = suppress_many(faces, ends, threshold, min_images=min_images, block_bytes=block_bytes)
        return float(found.kept.mean())

    return search_threshold(
        keep,
        lambda threshold: share(sample, sample_bounds, threshold),
        lambda threshold: share(values, bounds, threshold),
        tolerance=tolerance,
    )


def search_threshold(
    keep: float, of_sample: Callable[[float], float], of_all: Callable[[float], float], *, tolerance: float = 0.005
) -> tuple[float, float]:
    """Return a threshold and the share of all faces kept with it, within tolerance of keep.

    Bisects on the sample and looks at all faces; what the sample is off by there corrects the share that is sought on
    it. Where that does not settle, bisects on all faces.

    Args:
        of_sample, of_all: share kept of a threshold, rising with it.
    Raises:
        ValueError: a share that no threshold reaches.
    """
    wanted = keep
    for _ in range(_CORRECTIONS):
        threshold, _share = _bisect(of_sample, wanted, tolerance / 10)
        share = of_all(threshold)
        if abs(share - keep) <= tolerance:
            return threshold, share
        wanted += keep - share
    threshold, share = _bisect(of_all, keep, tolerance)
    if abs(share - keep) > tolerance:
        raise ValueError(
            f"keep {keep}: no threshold keeps this share within {tolerance}, the nearest, {threshold:.6g}, keeps"
            f" {share:.4f}; ask for that, or change min_images or remove duplicates first"
        )
    return threshold, share


def _bisect(share_of: Callable[[float], float], wanted: float, tolerance: float) -> tuple[float, float]:
    """The threshold whose share is within tolerance of wanted, else the nearest found, and its share."""
    low, high = _LOWEST, 1.0
    nearest = (high, 1.0)  # at 1 nothing is dropped
    if wanted >= 1 - tolerance:
        return nearest
    for _ in range(_HALVINGS):
        threshold = (low + high) / 2
        share = share_of(threshold)
        if abs(share - wanted) < abs(nearest[1] - wanted):
            nearest = (threshold, share)
        if abs(share - wanted) <= tolerance:
            break
        low, high = (threshold, high) if share < wanted else (low, threshold)
    return nearest


def some_identities(sizes: Ints, faces: int, largest: int, random: np.random.Generator) -> Ints:
    """Return identities by chance, rising, that have about so many faces in all, and none of more than `largest`."""
    order = random.permutation(len(sizes))
    order = order[sizes[order] <= largest]
    count = int(np.searchsorted(np.cumsum(sizes[order]), faces)) + 1
    return np.sort(order[:count])


def _sample(values: Floats, bounds: Ints, sample_faces: int, seed: int) -> tuple[Floats, Ints]:
    """The faces of identities chosen by chance, and their offsets; all of them where they are few, or large."""
    if len(values) <= sample_faces:
        return values, bounds
    sizes = np.diff(bounds)
    identities = some_identities(sizes, sample_faces, sample_faces // 10, np.random.default_rng(seed))
    if not len(identities):
        return values, bounds
    rows = np.concatenate([np.arange(bounds[k], bounds[k + 1]) for k in identities])
    return values[rows], np.r_[0, np.cumsum(sizes[identities])]
