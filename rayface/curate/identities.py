"""Shared code of selection methods: their result, checks of arguments, and batches of identities of similar size."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Bools, Ints

BLOCK_BYTES = 16 * 2**20  # fits a core's share of the cache, and has hundreds of ordinary identities

_LIKE_SIZE = 0.75
_UNIT = 8  # of widths: batched products are up to twice as fast at multiples of it


class Selection(NamedTuple):
    """Decisions on N images."""

    kept: Bools  # (N,)
    score: NDArray[np.float32]  # (N,), what images were ranked by, the highest first
    suppressed_by: Ints  # (N,), the row of the kept image that an image was dropped for; -1: none


class Batch(NamedTuple):
    """b identities of similar size, padded to m images, a little more than the largest has."""

    identities: Ints  # (b,)
    rows: Ints  # (b, m), of the embeddings; padding repeats the identity's last image
    valid: Bools  # (b, m), false for padding


def check_min_images(min_images: int) -> None:
    """Raise ValueError if an identity could vanish."""
    if min_images < 1:
        raise ValueError(f"min_images {min_images}: must be at least 1, because no identity is dropped")


def check_keep(keep: float) -> None:
    """Raise ValueError unless keep is a share."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep {keep}: must be above 0 and at most 1, the share of images to keep")


def batches(offsets: Ints, identities: Ints, identity_bytes: Callable[[int], int], block_bytes: int) -> Iterator[Batch]:
    """Yield the given identities that have images, in batches of similar size, the largest first.

    Args:
        identity_bytes: memory of an identity as a function of the number of images that it is padded to.
        block_bytes: largest batch, unless it holds one identity.
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
