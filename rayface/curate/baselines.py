"""What every other method has to beat at the same number of faces: chance, and herding."""

import numpy as np
from numpy.typing import ArrayLike

from rayface.curate.cosines import unit_rows
from rayface.curate.identities import (
    BLOCK_BYTES,
    Batch,
    Floats,
    Ints,
    Selection,
    batches,
    check_embeddings,
    check_keep,
    check_min_images,
    check_offsets,
)

_DECIMALS = 10  # what is equal but for rounding ties


def random(offsets: ArrayLike, keep: float, *, min_images: int = 1, seed: int = 0) -> Selection:
    """Keep faces by chance, of every identity the same share.

    Args:
        offsets: (I + 1,) where each identity begins, and N.
        keep: share of all faces, in (0, 1]; see `quotas`.
        min_images: kept of every identity that has so many, else all of it.
        seed: the same draw for the same seed and offsets.
    Returns:
        kept (N,), score (N,) in [0, 1) drawn for each face, suppressed_by (N,) all -1.
    Raises:
        ValueError: wrong offsets, keep or min_images.
    """
    bounds = check_offsets(offsets)
    sizes = np.diff(bounds)
    quota = quotas(sizes, keep, min_images)
    score = np.random.default_rng(seed).random(bounds[-1], np.float32)
    identity = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((-score, identity))
    kept = np.empty(len(score), bool)
    kept[order] = np.arange(len(score)) - bounds[identity] < quota[identity]
    return Selection(kept, score, np.full(len(score), -1, np.int64))


def herding(
    embeddings: ArrayLike,
    offsets: ArrayLike,
    keep: float,
    *,
    min_images: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Selection:
    """Keep of every identity the faces whose mean follows the identity's mean most closely, one after another.

    Welling 2009, as used by iCaRL: with unit embeddings f and their mean u, the k-th face is the one left with the
    highest f . (k u - sum of those chosen before). Ties go by index.

    Args:
        embeddings: (N, D) of any norm, the faces of an identity next to each other.
        offsets, keep, min_images: as of `random`.
        block_bytes: working memory, about; one identity takes 16 bytes for each value if that is more. An identity of n
            faces takes n * its quota * D multiplications.
    Returns:
        kept (N,), score (N,): 1 for the first chosen down to above 0 for the last, 0 for the others;
        suppressed_by (N,) all -1.
    Raises:
        ValueError: wrong shapes or settings; NaN, infinity or a vector of zeros.
    """
    values = check_embeddings(embeddings)
    bounds = check_offsets(offsets, len(values))
    quota = quotas(np.diff(bounds), keep, min_images)
    score = np.zeros(len(values), np.float32)
    everyone = np.arange(len(quota))
    for batch in batches(bounds, everyone, lambda faces: 16 * faces * values.shape[1], block_bytes):
        _herd(values, batch, quota[batch.identities], score)
    return Selection(score > 0, score, np.full(len(values), -1, np.int64))


def _herd(values: Floats, batch: Batch, quota: Ints, score: np.ndarray) -> None:
    """Put the scores of a batch of identities into score."""
    units = unit_rows(values, batch.rows)
    units *= batch.valid[..., None]
    counts = np.count_nonzero(batch.valid, axis=1)
    mean = units.sum(axis=1) / counts[:, None]
    toward = np.einsum("bmd,bd->bm", units, mean)
    chosen_before, left = np.zeros_like(toward), batch.valid.copy()
    each = np.arange(len(counts))
    for step in range(int(quota.max())):
        worth = np.where(left, np.round((step + 1) * toward - chosen_before, _DECIMALS), -np.inf)
        face = worth.argmax(axis=1)
        left[each, face] = False
        going = each[step < quota]
        score[batch.rows[going, face[going]]] = 1 - step / counts[going]
        chosen_before += np.einsum("bmd,bd->bm", units, units[each, face])


def quotas(sizes: Ints, keep: float, min_images: int = 1) -> Ints:
    """Return how many faces of each identity to keep, (I,): in total round(keep * faces).

    Every identity keeps the same share of its faces, up or down to a whole number, but at least min_images (or all
    that it has): where that binds, the others keep less. If it asks for more than `keep` allows, just that is kept.

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
