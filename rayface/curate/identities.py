"""What every method of choosing faces shares: faces grouped by identity, the result, batches of like size."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

BLOCK_BYTES = 16 * 2**20  # fits a core's share of the cache, and has hundreds of ordinary identities

_LIKE_SIZE = 0.75
_UNIT = 8  # of widths: batched products are up to twice as fast at multiples of it


class Selection(NamedTuple):
    """Which of N faces are kept, and why."""

    kept: Bools  # (N,)
    score: NDArray[np.float32]  # (N,), what faces were ranked by, the highest first
    suppressed_by: Ints  # (N,), the row of the kept face that a face was dropped for; -1: none


class Batch(NamedTuple):
    """b identities of like size, padded to m faces, a little more than the largest has."""

    identities: Ints  # (b,)
    rows: Ints  # (b, m), of the embeddings; a padded place repeats its identity's last face
    valid: Bools  # (b, m), false where padded


def group_offsets(labels: ArrayLike) -> Ints:
    """Return where each identity begins and the last one ends: (I + 1,), from labels (N,) in groups, in any order.

    Raises:
        ValueError: a label that comes back after another one.
    """
    values = np.asarray(labels)
    if values.ndim != 1:
        raise ValueError(f"labels shape {values.shape}: must be (N,)")
    if len(values) == 0:
        return np.zeros(1, np.int64)
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    if len(np.unique(values[starts])) < len(starts):
        raise ValueError("labels: one comes back after another; the faces of an identity must be neighbours, sort them")
    return np.r_[starts, len(values)].astype(np.int64)


def check_embeddings(embeddings: ArrayLike) -> Floats:
    """Return embeddings as (n, D) float16, float32 or float64, without a copy where they are so row by row.

    Their values are not looked at.

    Raises:
        ValueError: another shape, or no numbers.
    """
    values = np.asarray(embeddings)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"embeddings shape {values.shape}: must be (faces, embedding size), a row for each face")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"embeddings dtype {values.dtype}: must be numbers, float16 or float32")
    kind = values.dtype if values.dtype in (np.float16, np.float32) else np.float64
    return np.ascontiguousarray(values, kind)


def check_offsets(offsets: ArrayLike, num_faces: int | None = None) -> Ints:
    """Return offsets as (I + 1,) int64.

    Raises:
        ValueError: they do not climb from 0 to the number of faces, where that is given.
    """
    values = np.asarray(offsets)
    if values.ndim != 1 or len(values) == 0 or values.dtype.kind not in "iu":
        raise ValueError(f"offsets shape {values.shape} dtype {values.dtype}: must be (identities + 1,) integers")
    values = values.astype(np.int64, copy=False)
    num_faces = int(values[-1]) if num_faces is None else num_faces
    if values[0] != 0 or values[-1] != num_faces or (np.diff(values) < 0).any():
        raise ValueError(f"offsets: must climb from 0 to {num_faces}, the number of faces; group_offsets makes them")
    return values


def check_min_images(min_images: int) -> None:
    """Raise ValueError where an identity could vanish."""
    if min_images < 1:
        raise ValueError(f"min_images {min_images}: must be at least 1, an identity never vanishes")


def check_keep(keep: float) -> None:
    """Raise ValueError for what is no share to keep."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep}: must be above 0 and at most 1, the share of faces to keep")


def batches(offsets: Ints, identities: Ints, identity_bytes: Callable[[int], int], block_bytes: int) -> Iterator[Batch]:
    """Yield all given identities that have faces, in batches of like size, the largest first.

    Args:
        identity_bytes: memory that an identity takes, of the number of faces that it is padded to.
        block_bytes: of a batch, at most, unless it is of one identity.
    """
    sizes = np.diff(offsets)[identities]
    order = np.argsort(-sizes, kind="stable")
    order = order[: np.count_nonzero(sizes)]
    sizes, ordered = sizes[order], identities[order]
    first = 0
    while first < len(ordered):
        largest = int(sizes[first])
        width = largest if largest <= _UNIT else -(-largest // _UNIT) * _UNIT
        count = max(1, block_bytes // identity_bytes(width))
        alike = int(np.searchsorted(-sizes, -_LIKE_SIZE * largest, side="right"))
        last = min(first + count, alike)
        members, places = ordered[first:last], np.arange(width)
        counts = sizes[first:last, None]
        rows = offsets[members][:, None] + np.minimum(places, counts - 1)
        yield Batch(members, rows, places < counts)
        first = last
