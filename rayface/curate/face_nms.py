"""Face-NMS: of faces of one identity that are more alike than a threshold, keep the one that stands more apart.

The paper (arXiv 2109.04698) gives no formula; this is a reconstruction. With unit embeddings f_i of one identity, a
face scores l_i = 1 - f_i . mean_j f_j, its share of the mean pairwise distance. From the highest score down, a face
that is still there is kept and every other one with a higher cosine to it than the threshold is dropped for it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.curate.cosines import above_between, alike_in_batch, batch_cosines, margin, unit_rows
from rayface.curate.identities import (
    BLOCK_BYTES,
    Batch,
    Bools,
    Floats,
    Ints,
    Selection,
    batches,
    check_embeddings,
    check_min_images,
    check_offsets,
)

# Scores that are equal but for rounding are ties: the two faces of an identity of two always are.
_SCORE_DECIMALS = 12
_SCORE_ROWS = 4096
# Scores are means of cosines, and their errors a part of the cosines' (measured: 3e-7 at 512 dimensions).
_SCORE_MARGIN = 0.4


def sparsity_scores(embeddings: ArrayLike) -> NDArray[np.float64]:
    """Return 1 - f_i . mean_j f_j of the faces of one identity, f the unit embeddings.

    Args:
        embeddings: (n, D) of any norm.
    Returns:
        (n,) float64 in [0, 2], rounded to 12 decimals so that what should tie ties. Time O(n D), memory n plus a
        block of 4,096 rows.
    Raises:
        ValueError: another shape, NaN, infinity, or a vector of zeros.
    """
    values = check_embeddings(embeddings)
    return _scores_of_one(values, np.arange(len(values)))


def suppress(embeddings: ArrayLike, threshold: float, *, min_images: int = 1) -> Bools:
    """Return which faces of one identity Face-NMS keeps.

    Args:
        embeddings: (n, D) of any norm, float16, float32 or float64.
        threshold: of the cosine, in (-1, 1]; at 1 nothing is dropped.
        min_images: where fewer are left, the dropped ones of the highest score come back.
    Returns:
        (n,) bool. Ties in the score go by index. Decided as in float64.
    Raises:
        ValueError: as suppress_many.
    """
    values = check_embeddings(embeddings)
    return suppress_many(values, [0, len(values)], threshold, min_images=min_images).kept


def suppress_many(
    embeddings: ArrayLike,
    offsets: ArrayLike,
    threshold: float,
    *,
    min_images: int = 1,
    bonus: ArrayLike | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Selection:
    """Face-NMS of many identities: for each of them the same faces as `suppress`.

    Identities of like size are padded into batched float32 products; what is too close to call there (a cosine near
    the threshold, scores near each other) is computed again in float64. An identity whose cosines do not fit a block is
    compared block by block. Runs on torch's threads.

    Args:
        embeddings: (N, D) of any norm, the faces of an identity next to each other; may be a memory map.
        offsets: (I + 1,) where each identity begins, and N; see `group_offsets`.
        threshold, min_images: as of `suppress`.
        bonus: (N,) added to the scores that faces are ranked by.
        block_bytes: working memory, about, beside the result.
    Returns:
        kept (N,), score (N,) float32 (within 1e-5 of `sparsity_scores` and bonus), suppressed_by (N,) int64: the first
        kept face, in order of score, that is too alike; -1 for kept faces.
    Raises:
        ValueError: wrong shapes or settings; NaN, infinity or a vector of zeros (the first row found is named).
    """
    values = check_embeddings(embeddings)
    bounds = check_offsets(offsets, len(values))
    check_min_images(min_images)
    if not -1 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: must be above -1 and at most 1, it is a cosine")
    if block_bytes < 1:
        raise ValueError(f"block_bytes {block_bytes}: must be above 0")
    extra = np.zeros(len(values)) if bonus is None else np.asarray(bonus, np.float64)
    if extra.shape != (len(values),):
        raise ValueError(f"bonus shape {extra.shape}: must be ({len(values)},), one for each face")
    size = values.shape[1]
    found = Selection(np.ones(len(values), bool), np.zeros(len(values), np.float32), np.full(len(values), -1, np.int64))

    def identity_bytes(faces: int) -> int:
        # the rows as stored and in float32; cosines, a mask of them, and pairs, at worst all of them
        return faces * (size * (values.itemsize + 4) + 40 * faces + 64)

    sizes = np.diff(bounds)
    limit = _largest(identity_bytes, block_bytes)
    for batch in batches(bounds, np.flatnonzero(sizes <= limit), identity_bytes, block_bytes):
        _suppress_batch(values, batch, extra, threshold, min_images, block_bytes, found)
    for identity in np.flatnonzero(sizes > limit):
        rows = np.arange(bounds[identity], bounds[identity + 1])
        _suppress_large(values, rows, extra, threshold, min_images, limit, block_bytes, found)
    return found


def _largest(identity_bytes: Callable[[int], int], block_bytes: int) -> int:
    """The largest identity that fits a block; at least 16, below which blocks make no sense."""
    low, high = 16, 2**20
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if identity_bytes(middle) <= block_bytes else (low, middle - 1)
    return low


def _suppress_batch(
    values: Floats,
    batch: Batch,
    bonus: NDArray[np.float64],
    threshold: float,
    min_images: int,
    block_bytes: int,
    found: Selection,
) -> None:
    """Put the selection of a batch of whole identities into found."""
    cosines = batch_cosines(values, batch)
    counts = np.count_nonzero(batch.valid, axis=1)
    scores = np.where(batch.valid, 1 - cosines.sum(axis=2) / counts[:, None] + bonus[batch.rows], -np.inf)
    left, right = alike_in_batch(values, batch, cosines, threshold, block_bytes)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    # the order matters only where there is something to drop
    close = np.zeros(len(scores), bool)
    close[left // scores.shape[1]] = True
    close &= (ranked[:, :-1] < ranked[:, 1:] + _SCORE_MARGIN * margin(values)).any(axis=1)
    step = max(1, block_bytes // (cosines.shape[1] * values.shape[1] * 16))
    unsure = np.flatnonzero(close)
    for part in (unsure[k : k + step] for k in range(0, len(unsure), step)):
        scores[part] = _batch_scores(values, batch.rows[part], batch.valid[part], bonus)
        order[part] = np.argsort(-scores[part], axis=1, kind="stable")
    kept, by = _choose(order, left, right)
    kept &= batch.valid
    _bring_back(kept, by, order, batch.valid, min_images)
    places = batch.rows[batch.valid]
    found.kept[places] = kept[batch.valid]
    found.score[places] = scores[batch.valid]
    found.suppressed_by[places] = np.where(by < 0, -1, batch.rows.ravel()[by])[batch.valid]


def _suppress_large(
    values: Floats,
    rows: Ints,
    bonus: NDArray[np.float64],
    threshold: float,
    min_images: int,
    block: int,
    block_bytes: int,
    found: Selection,
) -> None:
    """Put the selection of one identity into found, comparing blocks of faces, in order of score."""
    scores = np.round(_scores_of_one(values, rows) + bonus[rows], _SCORE_DECIMALS)
    order = np.argsort(-scores, kind="stable")
    blocks = [rows[order[k : k + block]] for k in range(0, len(order), block)]
    found.score[rows] = scores
    found.kept[rows] = False
    by = found.suppressed_by
    for k, members in enumerate(blocks):
        faces = members[by[members] < 0]
        if len(faces) == 0:
            continue
        alike = np.triu(above_between(values, faces, faces, threshold, block_bytes), 1)
        chosen, within = (part[0] for part in _choose(np.arange(len(faces))[None], *np.nonzero(alike)))
        keepers = faces[chosen]
        found.kept[keepers] = True
        by[faces[~chosen]] = faces[within[~chosen]]
        for later in blocks[k + 1 :]:
            others = later[by[later] < 0]
            above = above_between(values, keepers, others, threshold, block_bytes)
            hit = above.any(axis=0)
            by[others[hit]] = keepers[above[:, hit].argmax(axis=0)]
    kept, dropped_by = found.kept[rows][None], by[rows][None]
    _bring_back(kept, dropped_by, order[None], np.ones_like(kept), min_images)
    found.kept[rows], found.suppressed_by[rows] = kept[0], dropped_by[0]


def _batch_scores(values: Floats, rows: Ints, valid: Bools, bonus: NDArray[np.float64]) -> NDArray[np.float64]:
    """(f, m) scores in float64 of identities of rows (f, m); minus infinity where padded."""
    units = unit_rows(values, rows)
    units *= valid[..., None]
    mean = units.sum(axis=1) / np.count_nonzero(valid, axis=1)[:, None]
    scores = 1 - np.einsum("fmd,fd->fm", units, mean) + bonus[rows]
    return np.where(valid, np.round(scores, _SCORE_DECIMALS), -np.inf)


def _scores_of_one(values: Floats, rows: Ints) -> NDArray[np.float64]:
    """(n,) sparsity scores of one identity of rows (n,), block by block."""
    blocks = [rows[k : k + _SCORE_ROWS] for k in range(0, len(rows), _SCORE_ROWS)]
    if not blocks:
        return np.zeros(0)
    mean = sum(unit_rows(values, block).sum(axis=0) for block in blocks) / len(rows)
    scores = 1 - np.concatenate([np.einsum("nd,d->n", unit_rows(values, block), mean) for block in blocks])
    return np.round(scores, _SCORE_DECIMALS)


def _choose(order: Ints, left: Ints, right: Ints) -> tuple[Bools, Ints]:
    """The greedy choice of all identities of a batch at once.

    In rounds: a face is kept once none of the undecided ones it is alike to comes before it, and those alike to a kept
    face are dropped. That is what going through the order gives, in a few rounds instead of a step for each face.

    Args:
        order: (b, m) faces by falling score.
        left, right: pairs of faces that are too alike, places in order.ravel().
    Returns:
        kept (b, m), and suppressed_by (b, m): places in order.ravel(), the first by order, or -1.
    """
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), axis=1)
    ranks = rank.ravel()
    swapped = ranks[left] > ranks[right]
    first, second = np.where(swapped, right, left), np.where(swapped, left, right)
    kept, undecided = np.ones(len(ranks), bool), np.ones(len(ranks), bool)
    before, after = first, second
    while len(before):
        free = undecided.copy()
        free[after] = False
        dropped = after[free[before]]
        kept[dropped] = False
        undecided[dropped] = False
        undecided &= ~free
        going = undecided[before] & undecided[after]
        before, after = before[going], after[going]
    by = np.full(len(ranks), -1, np.int64)
    decisive = kept[first]
    first, second = first[decisive], second[decisive]
    earliest = np.full(len(ranks), len(ranks))
    np.minimum.at(earliest, second, ranks[first])
    winner = ranks[first] == earliest[second]
    by[second[winner]] = first[winner]
    return kept.reshape(order.shape), by.reshape(order.shape)


def _bring_back(kept: Bools, by: Ints, order: Ints, valid: Bools, min_images: int) -> None:
    """Keep the dropped faces of the highest score, where fewer than min_images are left."""
    missing = np.minimum(min_images, np.count_nonzero(valid, axis=1)) - np.count_nonzero(kept, axis=1)
    if (missing <= 0).all():
        return
    dropped = np.take_along_axis(valid & ~kept, order, axis=1)
    back = dropped & (np.cumsum(dropped, axis=1) <= missing[:, None])
    places = np.zeros_like(back)
    np.put_along_axis(places, order, back, axis=1)
    kept |= places
    by[places] = -1
