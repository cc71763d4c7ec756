"""Unit embeddings and the centers of identities, in float64."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints

_BLOCK = 4096  # rows


def unit_rows(embeddings: Floats, rows: Ints) -> NDArray[np.float64]:
    """Return the embeddings of rows (...,) in float64, (..., D), each divided by its norm.

    Raises:
        ValueError: NaN, infinity, or a vector of zeros.
    """
    found = embeddings[rows]
    if found.dtype == np.float16:
        found = torch.from_numpy(found).float().numpy()  # ten times faster than numpy
    wide = found.astype(np.float64)
    norms = np.sqrt(np.einsum("...d,...d->...", wide, wide))
    bad = ~(np.isfinite(norms) & (norms > 0))
    if bad.any():
        what = "all zeros" if norms[bad][0] == 0 else "NaN or infinity in it"
        raise ValueError(f"embeddings row {rows[bad][0]}: {what}: leave the image out or embed it again")
    wide *= (1 / norms)[..., None]
    return wide


def unit_blocks(embeddings: Floats) -> Iterator[NDArray[np.float64]]:
    """Yield the unit embeddings of all rows, 4,096 at a time."""
    for start in range(0, len(embeddings), _BLOCK):
        yield unit_rows(embeddings, np.arange(start, min(start + _BLOCK, len(embeddings))))


def identity_centers(embeddings: Floats, offsets: Ints) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return unit centers (I, D), and the cosine (N,) of each image to the mean of its identity, 0 if the mean is zero.

    Args:
        embeddings: (N, D) of any norm, the images of an identity adjacent.
        offsets: (I + 1,) first image of each identity, and N; none is empty.

    Memory beside the result: blocks of 4,096 rows.
    """
    centers = np.zeros((len(offsets) - 1, embeddings.shape[1]), np.float32)
    cosines = np.zeros(len(embeddings))
    for first, last in _blocks(offsets):
        start, stop = int(offsets[first]), int(offsets[last])
        blocks = [np.arange(row, min(row + _BLOCK, stop)) for row in range(start, stop, _BLOCK)]
        sums = np.zeros((last - first, embeddings.shape[1]))
        for rows in blocks:  # several only of one identity
            starts = (offsets[first:last] - rows[0]).clip(min=0)
            sums += np.add.reduceat(unit_rows(embeddings, rows), starts, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        means = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 1e-9)
        centers[first:last] = means
        owner = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
        for rows in blocks:
            cosines[rows] = np.einsum("nd,nd->n", unit_rows(embeddings, rows), means[owner[rows - start]])
    return centers, cosines


def _blocks(offsets: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of whole identities (first, last + 1) with at most _BLOCK images, or of one identity."""
    first = 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + _BLOCK, side="right")) - 1)
        yield first, last
        first = last
