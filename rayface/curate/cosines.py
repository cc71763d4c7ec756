"""Cosines in float32, and decisions about them as if they were in float64."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.curate.identities import Batch, Bools, Floats, Ints

# Squared norms with which float32 neither overflows nor loses digits.
_PLAIN_SQUARES = (1e-24, 1e30)


def unit_rows(embeddings: Floats, rows: Ints) -> NDArray[np.float64]:
    """Return the embeddings of rows (...,) in float64, (..., D), each divided by its norm.

    Raises:
        ValueError: NaN, infinity, or a vector of zeros.
    """
    found = embeddings[rows]
    wide = (_widened(found) if found.dtype == np.float16 else found).astype(np.float64)
    norms = np.sqrt(np.einsum("...d,...d->...", wide, wide))
    bad = ~(np.isfinite(norms) & (norms > 0))
    if bad.any():
        what = "all zeros" if norms[bad][0] == 0 else "NaN or infinity in it"
        raise ValueError(
            f"embeddings row {rows[bad][0]}: {what}; a face must have a direction, leave it out or embed it anew"
        )
    wide *= (1 / norms)[..., None]
    return wide


def margin(embeddings: Floats) -> float:
    """How far a float32 cosine may be from the true one: eight times what rounding errors add up to at random."""
    return max(1e-5, 8 * math.sqrt(embeddings.shape[1]) * 2**-24)


def batch_cosines(embeddings: Floats, batch: Batch) -> NDArray[np.float32]:
    """Return (b, m, m) cosines within the identities of a batch; zero where padded.

    One batched product of the embeddings as they are: their norms are its diagonal.
    """
    faces = _widened(embeddings[batch.rows])
    if not batch.valid.all():
        faces[~batch.valid] = 0
    products = _products(faces, faces)
    squares = np.diagonal(products, axis1=1, axis2=2).copy()
    low, high = _PLAIN_SQUARES
    odd = (~((squares > low) & (squares < high)) & batch.valid).any(axis=1)
    if odd.any():
        units = (unit_rows(embeddings, batch.rows[odd]) * batch.valid[odd][..., None]).astype(np.float32)
        products[odd] = _products(units, units)
        squares[odd] = 1
    inverse = batch.valid / np.sqrt(np.where(batch.valid, squares, 1))
    products *= inverse[:, :, None]
    products *= inverse[:, None, :]
    return products


def alike_in_batch(
    embeddings: Floats, batch: Batch, cosines: NDArray[np.float32], threshold: float, block_bytes: int
) -> tuple[Ints, Ints]:
    """Return the pairs of faces with a higher cosine than the threshold, as two arrays of places in batch.rows.ravel().

    Each pair once, the lower place first.
    """
    width = cosines.shape[1]
    unsure = margin(embeddings)
    likely = cosines > threshold - unsure
    likely &= np.triu(np.ones((width, width), bool), 1)
    at = np.flatnonzero(likely)
    face, right = np.divmod(at, width)
    left, right = face, face // width * width + right
    near = np.flatnonzero(cosines.ravel()[at] <= threshold + unsure)
    rows = batch.rows.ravel()
    refused = near[_exact(embeddings, rows[left[near]], rows[right[near]], block_bytes) <= threshold]
    return np.delete(left, refused), np.delete(right, refused)


def above_between(embeddings: Floats, left: Ints, right: Ints, threshold: float, block_bytes: int) -> Bools:
    """Return (p, q): which of the rows left (p,) and right (q,) have a higher cosine than the threshold."""
    cosines = _products(*(unit_rows(embeddings, side).astype(np.float32) for side in (left, right)))
    unsure = margin(embeddings)
    above = cosines > threshold + unsure
    near = np.nonzero((cosines > threshold - unsure) != above)
    above[near] = _exact(embeddings, left[near[0]], right[near[1]], block_bytes) > threshold
    return above


def _exact(embeddings: Floats, left: Ints, right: Ints, block_bytes: int) -> NDArray[np.float64]:
    """(k,) cosines of the rows left and right in float64, never above 1."""
    found = np.empty(len(left))
    step = max(1, block_bytes // (embeddings.shape[1] * 40))
    for first in range(0, len(left), step):
        pairs = (unit_rows(embeddings, side[first : first + step]) for side in (left, right))
        found[first : first + step] = np.einsum("kd,kd->k", *pairs)
    return np.minimum(found, 1)


def _products(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., p, q) dot products of (..., p, D) and (..., q, D)."""
    return torch.matmul(torch.from_numpy(left), torch.from_numpy(right).transpose(-1, -2)).numpy()


def _widened(values: Floats) -> NDArray[np.float32]:
    """Values in float32, the same array where they are; torch widens float16 ten times faster than numpy."""
    return torch.from_numpy(values).float().numpy()
