"""Face-NMS: of images of one identity with a cosine above a threshold, keep the most isolated one.

The paper (arXiv 2109.04698) gives no formula; this is a reconstruction. With unit embeddings f_i of one identity, an
image scores l_i = 1 - f_i . mean_j f_j, its share of the mean pairwise distance. In order of decreasing score, a
remaining image is kept, and all remaining ones whose cosine to it is above the threshold are suppressed.

If an identity keeps more than MAX_COMPARED images, an image is compared with the last MAX_COMPARED kept ones before its
block of 512 ranks, and with those in its block: at most n * MAX_COMPARED * D products. Two similar images are then both
kept if more than MAX_COMPARED are kept between their scores.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Bools, Ints, check_embeddings, check_offsets
from rayface.curate.cosines import unit_rows
from rayface.curate.identities import BLOCK_BYTES, Selection, check_min_images
from rayface.curate.nms_kernel import MAX_BLOCK, SCORE_DECIMALS, suppress_identities

MAX_COMPARED = 32_768
_SCORE_ROWS = 4096
_LEAST_BLOCK = 16  # rows
_TASK_WORK = 2_000_000  # pairs of images in a thread's task


def sparsity_scores(embeddings: ArrayLike) -> NDArray[np.float64]:
    """Return 1 - f_i . mean_j f_j of the images of one identity, f the unit embeddings.

    Args:
        embeddings: (n, D) of any norm.

    Returns:
        (n,) float64 in [0, 2], rounded to 12 decimals so that equal images tie. O(n D) products; memory: n and a block
        of 4,096 rows.

    Raises:
        ValueError: another shape, NaN, infinity, or a vector of zeros.
    """
    values = check_embeddings(embeddings)
    rows = np.arange(len(values))
    blocks = [rows[k : k + _SCORE_ROWS] for k in range(0, len(rows), _SCORE_ROWS)]
    if not blocks:
        return np.zeros(0)
    mean = sum(unit_rows(values, block).sum(axis=0) for block in blocks) / len(rows)
    scores = 1 - np.concatenate([np.einsum("nd,d->n", unit_rows(values, block), mean) for block in blocks])
    return np.round(scores, SCORE_DECIMALS)


def suppress(embeddings: ArrayLike, threshold: float, *, min_images: int = 1) -> Bools:
    """Return which images of one identity Face-NMS keeps.

    Args:
        embeddings: (n, D) of any norm, float16, float32 or float64.
        threshold: cosine in (-1, 1]; at 1 nothing is dropped.
        min_images: if fewer are kept, dropped images of the highest score are kept too.

    Returns:
        (n,) bool. Ties in the score are broken by index. Decisions are exact as in float64.

    Raises:
        ValueError: see suppress_many.
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
    """Apply Face-NMS to many identities, with the same result as `suppress` for each.

    Compiled by numba (seconds at the first call, then cached on disk), with as many threads as torch. A large identity
    is compared block by block, and by the rule above if it keeps more than MAX_COMPARED images.

    Args:
        embeddings: (N, D) of any norm, the images of an identity adjacent; may be a memory map.
        offsets: (I + 1,) first image of each identity, and N; see `arrays.group_offsets`.
        threshold, min_images: see `suppress`.
        bonus: (N,) added to the scores.
        block_bytes: approximate working memory of a thread, beside the result and 32 bytes per image of an identity.

    Returns:
        kept (N,), score (N,) float32 (`sparsity_scores` and bonus), suppressed_by (N,) int64: the first kept image, in
        order of score, with a cosine above the threshold; -1 for kept images.

    Raises:
        ValueError: wrong shapes or settings; NaN, infinity or an all-zero vector (the first such row is named).
    """
    values = check_embeddings(embeddings)
    bounds = check_offsets(offsets, len(values))
    _check_settings(threshold, min_images, block_bytes)
    extra = np.zeros(len(values)) if bonus is None else np.asarray(bonus, np.float64)
    if extra.shape != (len(values),) or not np.isfinite(extra).all():
        raise ValueError(f"bonus shape {extra.shape}: must be ({len(values)},), one finite number per image")
    found = Selection(np.ones(len(values), bool), np.zeros(len(values), np.float32), np.full(len(values), -1, np.int64))
    size = values.shape[1]
    block = min(MAX_BLOCK, max(_LEAST_BLOCK, block_bytes // (4 * size)), int(np.diff(bounds).max(initial=1)))

    def work(first: int, last: int) -> int:
        units = np.empty((2, block, size), np.int16)
        identities, settings = bounds[first : last + 1], (threshold, min_images, MAX_COMPARED)
        return suppress_identities(values, identities, extra, *settings, units, *found)

    if rows := [row for row in _in_threads(work, _tasks(bounds)) if row >= 0]:
        unit_rows(values, np.array([min(rows)]))  # raises an error that names the fault
    return found


def _in_threads(work: Callable[[int, int], int], tasks: Sequence[tuple[int, int]]) -> list[int]:
    """Return the result of each task, computed with as many threads as torch."""
    threads = torch.get_num_threads()
    if min(len(tasks), threads) <= 1:
        return [work(*task) for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, *zip(*tasks, strict=True)))


def _check_settings(threshold: float, min_images: int, block_bytes: int) -> None:
    check_min_images(min_images)
    if not -1 < threshold <= 1:
        raise ValueError(f"threshold {threshold}: must be above -1 and at most 1, because it is a cosine")
    if block_bytes < 1:
        raise ValueError(f"block_bytes {block_bytes}: must be above 0")


def _tasks(bounds: Ints) -> list[tuple[int, int]]:
    """Return ranges of identities (first, last + 1) of about equal work."""
    if len(bounds) < 2:
        return []
    work = np.cumsum(np.diff(bounds).astype(np.float64) ** 2)
    cuts = np.flatnonzero(np.diff(work // _TASK_WORK)) + 1
    edges = [0, *cuts.tolist(), len(bounds) - 1]
    return list(itertools.pairwise(edges))
