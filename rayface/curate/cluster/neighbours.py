"""Nearest neighbours of unit embeddings by cosine: exact and in blocks, so that memory does not grow with N."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints

BLOCK = 65_536  # rows of the searched set held as float32 at a time


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Nearest neighbours of N images, without the image itself, nearest first; ties by row.

    Attributes:
        rows: (N, k) int64; -1 where there are fewer.
        cosines: (N, k) float32; -2 where there are fewer.
    """

    rows: Ints
    cosines: NDArray[np.float32]

    def within(self, labels: Ints) -> Neighbours:
        """Return the neighbours of the same label, nearest first."""
        same = (self.rows >= 0) & (labels[self.rows] == labels[:, None])
        order = np.argsort(~same, axis=1, kind="stable")
        rows, cosines = np.where(same, self.rows, -1), np.where(same, self.cosines, np.float32(-2))
        return Neighbours(
            rows=np.take_along_axis(rows, order, axis=1), cosines=np.take_along_axis(cosines, order, axis=1)
        )

    def edges(self, threshold: float) -> Edges:
        """Return each pair of neighbours with a cosine of at least `threshold` once."""
        first, place = np.nonzero(self.cosines >= threshold)
        return unique_edges(first, self.rows[first, place], self.cosines[first, place])


@dataclass(frozen=True, kw_only=True)
class Edges:
    """E undirected edges: `a` < `b` (E,), sorted by both, and their values (E,) float32, such as cosines."""

    a: Ints
    b: Ints
    values: NDArray[np.float32]


def unique_edges(first: Ints, second: Ints, values: NDArray[np.float32]) -> Edges:
    """Return each edge once, whichever its direction; loops are left out."""
    a, b = np.minimum(first, second), np.maximum(first, second)
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    kept = (a != b) & np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])][: len(a)]
    return Edges(a=a[kept], b=b[kept], values=values[order][kept])


def no_neighbours(count: int) -> Neighbours:
    """Return no neighbours of `count` images, for methods that need none."""
    return Neighbours(rows=np.empty((count, 0), np.int64), cosines=np.empty((count, 0), np.float32))


def nearest(vectors: Floats, k: int) -> Neighbours:
    """Search the k nearest neighbours of all unit vectors (N, D), exactly."""
    blocks = ((first, vectors[first : first + BLOCK]) for first in range(0, len(vectors), BLOCK))
    return search(vectors, np.arange(len(vectors)), blocks, k)


def search(queries: Floats, own: Ints, blocks: Iterable[tuple[int, Floats]], k: int) -> Neighbours:
    """Search the k nearest neighbours of the unit vectors (n, D) exactly.

    Args:
        own: (n,) row of each query among all vectors; -1: none, so that no row is left out.
        blocks: all vectors, in blocks with the row of the first.

    Memory: a block as float32, and 40 * k bytes per query.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    best = Neighbours(rows=np.full((len(queries), k), -1, np.int64), cosines=np.full((len(queries), k), -2, np.float32))
    for first, vectors in blocks:
        block = np.ascontiguousarray(vectors, np.float32)
        found, places = faiss.knn(queries, block, min(k + 1, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        best = merged(best, places + first, found, own)
    return best


def merged(before: Neighbours, rows: Ints, cosines: NDArray[np.float32], own: Ints) -> Neighbours:
    """Return the nearest of the neighbours (n, k) and of more candidates (n, m), without the image (n,) itself."""
    rows, cosines = np.concatenate([before.rows, rows], axis=1), np.concatenate([before.cosines, cosines], axis=1)
    cosines = np.where((rows == own[:, None]) | (rows < 0), np.float32(-2), cosines)
    order = np.lexsort((rows, -cosines), axis=1)[:, : before.rows.shape[1]]
    cosines = np.take_along_axis(cosines, order, axis=1)
    return Neighbours(rows=np.where(cosines < -1.5, -1, np.take_along_axis(rows, order, axis=1)), cosines=cosines)
