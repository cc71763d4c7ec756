"""Average linkage on a graph of neighbours: clusters merge while the mean cosine of their pairs is above a threshold.

The mean cosine of all pairs of two clusters is the product of the sums of their unit vectors over the product of their
sizes, so no pair is computed. Average linkage is reducible: clusters that are each other's best neighbour may be merged
in any order, so every round merges all of them at once, and the result is that of merging the best pair each time.
Only pairs of clusters that an edge of the graph connects are candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.compiled import compiled
from rayface.curate.cluster.neighbours import Edges, unique_edges


def average_linkage(vectors: Floats, edges: Edges, threshold: float) -> Ints:
    """Return the cluster (N,) of each image, numbered by first image.

    Args:
        vectors: (N, D) of length 1, or sums of unit vectors with `sizes`.
        edges: candidates, for example `Neighbours.edges(threshold)`.
        threshold: least mean cosine of the pairs of two clusters that merge.

    Memory: 4 * D bytes per image, 40 per edge.
    """
    sums = np.array(vectors, np.float32)
    sizes = np.ones(len(sums))
    cluster = np.arange(len(sums))
    edges = _above(edges, threshold)
    while len(edges.a):
        a, b = _mutual_best(edges, len(sums))
        sums[a] += sums[b]
        sizes[a] += sizes[b]
        into = np.arange(len(sums))
        into[b] = a
        cluster = into[cluster]
        edges = _above(_merged(edges, into, sums, sizes), threshold)
    return np.unique(cluster, return_inverse=True)[1]


def _above(edges: Edges, threshold: float) -> Edges:
    kept = edges.cosines >= threshold
    return Edges(a=edges.a[kept], b=edges.b[kept], cosines=edges.cosines[kept])


def _mutual_best(edges: Edges, count: int) -> tuple[Ints, Ints]:
    """Return the edges that are the best of both of their ends; ties by the edges' order."""
    order = np.argsort(-edges.cosines, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    best = np.full(count, len(order))
    np.minimum.at(best, edges.a, rank)
    np.minimum.at(best, edges.b, rank)
    mutual = (best[edges.a] == rank) & (best[edges.b] == rank)
    return edges.a[mutual], edges.b[mutual]


def _merged(edges: Edges, into: Ints, sums: NDArray[np.float32], sizes: NDArray[np.float64]) -> Edges:
    """Return the edges between the merged clusters; computes the cosines of those that changed."""
    grown = np.zeros(len(into), bool)
    grown[into[into != np.arange(len(into))]] = True
    found = unique_edges(into[edges.a], into[edges.b], edges.cosines)
    changed = np.flatnonzero(grown[found.a] | grown[found.b])
    cosines = found.cosines.copy()
    cosines[changed] = _products(sums, found.a[changed], found.b[changed]) / (
        sizes[found.a[changed]] * sizes[found.b[changed]]
    )
    return Edges(a=found.a, b=found.b, cosines=cosines)


@compiled
def _products(sums: NDArray[np.float32], a: Ints, b: Ints) -> NDArray[np.float64]:
    """Return the inner products (E,) of rows a and b."""
    found = np.empty(len(a))
    for edge in range(len(a)):
        left, right, total = sums[a[edge]], sums[b[edge]], np.float32(0)
        for column in range(sums.shape[1]):
            total += left[column] * right[column]
        found[edge] = total
    return found
