"""Search the threshold at which a given share of the images is kept."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from rayface.arrays import Floats, Ints, check_embeddings, check_offsets
from rayface.curate.face_nms import suppress_many
from rayface.curate.identities import BLOCK_BYTES, check_keep, check_min_images

_LOWEST = -1 + 1e-6
_HALVINGS = 24
_CORRECTIONS = 2


class UnreachableKeepError(ValueError):
    """No threshold keeps the share that is wanted; one line."""


def threshold_for_keep(
    embeddings: ArrayLike,
    offsets: ArrayLike,
    keep: float,
    *,
    min_images: int = 1,
    tolerance: float = 0.005,
    sample_images: int = 50_000,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[float, float]:
    """Return the threshold at which `suppress_many` keeps the share `keep` of all images, and the actual share.

    Args:
        embeddings, offsets, min_images, block_bytes: see `suppress_many`.
        keep: share of the images, in (0, 1].
        tolerance: largest difference from that share; at least half an image.
        sample_images: approximate number of images, of random identities, on which the threshold is searched; they are
            copied. Identities with more than a tenth of that are excluded; if there are no others, all images are used.
        seed: seed of the sample.

    Raises:
        ValueError: wrong input.
        UnreachableKeepError: no threshold keeps the share within the tolerance.
    """
    values = check_embeddings(embeddings)
    bounds = check_offsets(offsets, len(values))
    check_min_images(min_images)
    check_keep(keep)
    if len(values) == 0:
        raise ValueError("embeddings: no images: cannot search a threshold")
    sample, sample_bounds = _sample(values, bounds, sample_images, seed)

    def share(images: Floats, ends: Ints, threshold: float) -> float:
        found = suppress_many(images, ends, threshold, min_images=min_images, block_bytes=block_bytes)
        return float(found.kept.mean())

    return search_threshold(
        keep,
        lambda threshold: share(sample, sample_bounds, threshold),
        lambda threshold: share(values, bounds, threshold),
        num_images=len(values),
        tolerance=tolerance,
    )


def search_threshold(
    keep: float,
    of_sample: Callable[[float], float],
    of_all: Callable[[float], float],
    *,
    num_images: int,
    tolerance: float = 0.005,
    threshold_at: Callable[[float], float] = float,
) -> tuple[float, float]:
    """Return a position and the share of all images kept at it, within tolerance of keep, or half an image.

    Bisects on the sample and verifies on all images; their difference corrects the share to search on the sample. If
    that does not converge, bisects on all images.

    Args:
        of_sample, of_all: share kept at a position from -1 to 1, rising with it.
        num_images: number of all images.
        threshold_at: threshold at a position, for messages.

    Raises:
        UnreachableKeepError: no threshold keeps this share.
    """
    tolerance = max(tolerance, 0.5 / max(num_images, 1) + 1e-9)  # shares are multiples of 1 / num_images
    wanted = keep
    for _ in range(_CORRECTIONS):
        position, _share = _bisect(of_sample, wanted, tolerance / 10)
        share = of_all(position)
        if abs(share - keep) <= tolerance:
            return position, share
        wanted += keep - share
    position, share = _bisect(of_all, keep, tolerance)
    if abs(share - keep) > tolerance:
        raise UnreachableKeepError(
            f"keep {keep}: no threshold keeps this share within {tolerance:.3g}, threshold {threshold_at(position):.6g}"
            f" keeps {share:.4f}: ask for that share, or change min_images or remove duplicates first"
        )
    return position, share


def _bisect(share_of: Callable[[float], float], wanted: float, tolerance: float) -> tuple[float, float]:
    """Return a threshold whose share is within tolerance of wanted, else the nearest one found, and its share."""
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


def sample_identities(sizes: Ints, num_images: int, largest: int, random: np.random.Generator) -> Ints:
    """Return random identities (k,), rising, with about num_images images in all and at most `largest` each."""
    order = random.permutation(len(sizes))
    order = order[sizes[order] <= largest]
    count = int(np.searchsorted(np.cumsum(sizes[order]), num_images)) + 1
    return np.sort(order[:count])


def _sample(values: Floats, bounds: Ints, sample_images: int, seed: int) -> tuple[Floats, Ints]:
    """Return the embeddings of random identities and their offsets; of all identities if they are few or large."""
    if len(values) <= sample_images:
        return values, bounds
    sizes = np.diff(bounds)
    identities = sample_identities(sizes, sample_images, sample_images // 10, np.random.default_rng(seed))
    if not len(identities):
        return values, bounds
    rows = np.concatenate([np.arange(bounds[k], bounds[k + 1]) for k in identities])
    return values[rows], np.r_[0, np.cumsum(sizes[identities])]
