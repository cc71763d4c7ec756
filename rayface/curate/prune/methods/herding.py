"""Herding: keep the images whose mean follows the mean of their identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Floats, Ints, check_embeddings, check_offsets
from rayface.config import PruneConfig
from rayface.curate.cosines import unit_rows
from rayface.curate.identities import BLOCK_BYTES, Batch, Selection, batches
from rayface.curate.prune.methods.quota import QuotaMethod, Quotas, wanted_share
from rayface.curate.prune.selection_method import Images

LARGEST = 8192  # images of an identity that are processed together
_ROWS = 4096
_DECIMALS = 10  # values that differ only by rounding tie


@dataclass(frozen=True, kw_only=True)
class Herding(QuotaMethod):
    """Keep the images whose mean follows the mean of their identity."""

    title: ClassVar[str] = "herding"
    reason: ClassVar[str] = "not chosen"

    @classmethod
    def from_settings(cls, settings: PruneConfig) -> Self:
        return cls(keep=wanted_share(settings), min_images=settings.min_images)

    def select(self, images: Images, prepared: Quotas) -> Selection:
        return herding(images.embeddings, images.offsets, prepared.of(images))

    def compared_in_part(self, sizes: Ints, core_set: Path) -> int:
        return int(np.count_nonzero(sizes > LARGEST))


def herding(
    embeddings: ArrayLike,
    offsets: ArrayLike,
    quota: Ints,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Selection:
    """Keep of every identity the images whose running mean stays closest to the identity's mean.

    Welling 2009, as used by iCaRL: with unit embeddings f and their mean u, the k-th image is the remaining one with
    the highest f . (k u - sum of those selected before). Ties go by index.

    An identity of more than LARGEST images is split into the fewest parts p that are no larger: image i goes to part
    i mod p. Each part follows the mean of the identity with its share of the quota.

    Args:
        embeddings: (N, D) of any norm, the images of an identity adjacent.
        offsets: (I + 1,) first image of each identity, and N.
        quota: (I,) images to keep of each identity; see `quotas`.
        block_bytes: approximate working memory; one identity (or part) takes 16 bytes per value if that is more. An
            identity of n images takes n * quota * D multiplications.

    Returns:
        kept (N,), score (N,): 1 for the first selected (of a part), falling to above 0 for the last, 0 for
        the others;
        suppressed_by (N,) all -1.

    Raises:
        ValueError: wrong shapes; NaN, infinity or an all-zero vector.
    """
    values = check_embeddings(embeddings)
    bounds = check_offsets(offsets, len(values))
    score = np.zeros(len(values), np.float32)
    large = np.diff(bounds) > LARGEST
    for batch in batches(bounds, np.flatnonzero(~large), lambda images: 16 * images * values.shape[1], block_bytes):
        _herd(values, batch, quota[batch.identities], score)
    for identity in np.flatnonzero(large).tolist():
        _herd_parts(values, int(bounds[identity]), int(bounds[identity + 1]), int(quota[identity]), score)
    return Selection(score > 0, score, np.full(len(values), -1, np.int64))


def _herd_parts(values: Floats, first: int, last: int, quota: int, score: np.ndarray) -> None:
    """Write the scores of an identity of rows [first, last), split into parts, to `score`."""
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
    """Write the scores of a batch of identities to `score`; `mean` (b, D) defaults to the means of its rows."""
    units = unit_rows(values, batch.rows)
    units *= batch.valid[..., None]
    counts = np.count_nonzero(batch.valid, axis=1)
    if mean is None:
        mean = units.sum(axis=1) / counts[:, None]
    toward = np.einsum("bmd,bd->bm", units, mean)
    selected_before, left = np.zeros_like(toward), batch.valid.copy()
    each = np.arange(len(counts))
    for step in range(int(quota.max())):
        worth = np.where(left, np.round((step + 1) * toward - selected_before, _DECIMALS), -np.inf)
        image = worth.argmax(axis=1)
        left[each, image] = False
        going = each[step < quota]
        score[batch.rows[going, image[going]]] = 1 - step / counts[going]
        selected_before += np.einsum("bmd,bd->bm", units, units[each, image])
