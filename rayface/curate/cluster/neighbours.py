"""Nearest neighbours of unit embeddings by cosine: exact and in blocks, so that memory does not grow with N."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Bools, Floats, Ints

BLOCK = 65_536  # rows of the searched set held as float32 at a time
EQUAL = 1 - 1e-6  # cosine from which images are copies of each other: 1, but for rounding
_ROWS = 4096  # rows of neighbours that are looked at together


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Nearest neighbours of N images, without the image itself, nearest first; ties by row.

    Attributes:
        rows: (N, k) int64 or int32; -1 where there are fewer.
        cosines: (N, k) float32; -2 where there are fewer.
    """

    rows: Ints
    cosines: NDArray[np.float32]

    def within(self, labels: Ints) -> Neighbours:
        """Return the neighbours of the same label, nearest first."""
        rows, cosines = np.empty_like(self.rows), np.empty_like(self.cosines)
        for start in range(0, len(rows), _ROWS):
            own = slice(start, start + _ROWS)
            same = (self.rows[own] >= 0) & (labels[self.rows[own]] == labels[own, None])
            order = np.argsort(~same, axis=1, kind="stable")
            rows[own] = np.take_along_axis(np.where(same, self.rows[own], -1), order, axis=1)
            cosines[own] = np.take_along_axis(np.where(same, self.cosines[own], np.float32(-2)), order, axis=1)
        return Neighbours(rows=rows, cosines=cosines)

    def near(self, threshold: float) -> Bools:
        """Return which neighbours (N, k) have a cosine of at least `threshold`, or are copies of the image."""
        found: Bools = self.cosines >= np.float32(min(threshold, EQUAL))
        return found

    def edges(self, threshold: float) -> Edges:
        """Return each pair of neighbours with a cosine of at least `threshold` once, and copies at any threshold.

        Memory: up to 30 bytes per such neighbour with int32 rows.
        """
        near = self.near(threshold)
        first = np.repeat(np.arange(len(near), dtype=self.rows.dtype), np.count_nonzero(near, axis=1))
        return unique_edges(first, self.rows[near], self.cosines[near])


@dataclass(frozen=True, kw_only=True)
class Edges:
    """E undirected edges: `a` < `b` (E,), of the type of the rows, sorted by both, and values (E,) float32."""

    a: Ints
    b: Ints
    values: NDArray[np.float32]


def unique_edges(a: Ints, b: Ints, values: NDArray[np.float32]) -> Edges:
    """Return each edge once, whichever its direction; loops are left out."""
    a, b = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((b, a))
    a = a[order]  # one after the other, for the memory
    b = b[order]
    values = values[order]
    del order
    kept = a != b
    kept[1:] &= (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    return Edges(a=a[kept], b=b[kept], values=values[kept])


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
