"""What every other method has to beat at the same number of faces: chance, and herding."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Floats, Ints, check_embeddings, check_offsets, group_offsets
from rayface.curate.cosines import unit_rows
from rayface.curate.identities import BLOCK_BYTES, Batch, Selection, batches, check_keep, check_min_images

LARGEST = 8192  # faces of an identity that herding takes whole
_ROWS = 4096
_DECIMALS = 10  # what is equal but for rounding ties


def random(labels: ArrayLike, quota: Ints, *, seed: int = 0) -> Selection:
    """Keep faces by chance.

    Args:
        labels: (N,) in groups.
        quota: (I,) faces to keep of each identity, in the order of the groups; see `quotas`.
        seed: what an identity draws is a function of seed, label and its number of faces, whoever else is there.
    Returns:
        kept (N,), score (N,) in [0, 1) drawn for each face, suppressed_by (N,) all -1.
    Raises:
        ValueError: labels that are not in groups.
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


def _mixed(words: Any) -> Any:
    """The output function of splitmix64 (Steele et al. 2014): every bit depends on every bit."""
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))


def herding(
    embeddings: ArrayLike,
    offsets: ArrayLike,
    quota: Ints,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Selection:
    """Keep of every identity the faces whose mean follows the identity's mean most closely, one after another.

    Welling 2009, as used by iCaRL: with unit embeddings f and their mean u, the k-th face is the one left with the
    highest f . (k u - sum of those chosen before). Ties go by index.

    An identity of more than LARGEST faces is dealt out into p parts, the fewest that are no larger: face i to part
    i mod p. Each part follows the mean of the identity with its share of the quota.

    Args:
        embeddings: (N, D) of any norm, the faces of an identity next to each other.
        offsets: (I + 1,) where each identity begins, and N.
        quota: (I,) faces to keep of each identity; see `quotas`.
        block_bytes: working memory, about; one identity (or part) takes 16 bytes for each value if that is more. One of
            n faces takes n * its quota * D multiplications.
    Returns:
        kept (N,), score (N,): 1 for the first chosen (of a part) down to above 0 for the last, 0 for the others;
        suppressed_by (N,) all -1.
    Raises:
        ValueError: wrong shapes; NaN, infinity or a vector of zeros.
    """
    values = check_embeddings(embeddings)
    bounds = check_offsets(offsets, len(values))
    score = np.zeros(len(values), np.float32)
    large = np.diff(bounds) > LARGEST
    for batch in batches(bounds, np.flatnonzero(~large), lambda faces: 16 * faces * values.shape[1], block_bytes):
        _herd(values, batch, quota[batch.identities], score)
    for identity in np.flatnonzero(large).tolist():
        _herd_parts(values, int(bounds[identity]), int(bounds[identity + 1]), int(quota[identity]), score)
    return Selection(score > 0, score, np.full(len(values), -1, np.int64))


def _herd_parts(values: Floats, first: int, last: int, quota: int, score: np.ndarray) -> None:
    """Put the scores of an identity of rows [first, last) that is dealt out into score."""
    sums = [unit_rows(values, np.arange(row, min(row + _ROWS, last))).sum(axis=0) for row in range(first, last, _ROWS)]
    mean = np.sum(sums, axis=0, keepdims=True) / (last - first)
    parts = -(-(last - first) // LARGEST)
    for part in range(parts):
        rows = np.arange(first + part, last, parts)[None]
        batch = Batch(np.zeros(1, np.int64), rows, np.ones(rows.shape, bool))
        _herd(values, batch, np.array([quota // parts + (part < quota % parts)]), score, mean)


def _herd(
    values: Floats, batch: Batch, quota: Ints, score: np.ndarray, mean: NDArray[np.float64] | None = None
) -> None:
    """Put the scores of a batch of identities into score; their means (b, D) are those of its rows if not given."""
    units = unit_rows(values, batch.rows)
    units *= batch.valid[..., None]
    counts = np.count_nonzero(batch.valid, axis=1)
    if mean is None:
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
