"""Agglomerative clustering on a graph of neighbours: the two clusters of highest affinity merge, down to a threshold.

With an infinite prior (`affinity.Scale`) the affinity is the mean cosine of all pairs: average linkage. That is
reducible: clusters that are each other's best may merge in any order, so a round merges all of them at once. Only
pairs of clusters that an edge of the graph connects are candidates. The edges of equal images all tie, and one pair of
them would merge a round, so copies of a picture are joined first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rayface.arrays import Floats, Ints
from rayface.compiled import compiled
from rayface.curate.affinity import RATIO, Scale, affinity, cohesion, dot
from rayface.curate.cluster.neighbours import EQUAL, Edges, unique_edges


def linked(vectors: Floats, edges: Edges, scale: Scale, start: Ints | None = None) -> Ints:
    """Return the cluster (N,) of each image, numbered by first image, or in the order of `start`.

    Args:
        vectors: (N, D) of length 1.
        edges: candidates, for example `Neighbours.edges(threshold)`.
        scale: of `scale_of(threshold, ...)`.
        start: clusters (N,) to merge; None: single images.

    Memory: 4 * D + 40 bytes per image, 40 per edge of int32 rows, beside the edges.
    """
    sums = np.array(vectors, np.float32)
    sizes, cohesions = np.ones(len(sums)), np.full(len(sums), scale.expected)
    cluster = np.arange(len(sums), dtype=edges.a.dtype)
    if start is None:
        a, b = _equal(edges, edges.values)
        edges = _linking(edges, ((edges.values - scale.base) / scale.expected).astype(np.float32))
    else:
        names, number = np.unique(start, return_inverse=True)
        cluster = number.astype(edges.a.dtype)
        sums, sizes = np.zeros((len(names), sums.shape[1]), np.float32), np.bincount(cluster).astype(float)
        np.add.at(sums, cluster, vectors)
        cohesions = _cohesions(sums, np.arange(len(names)), sizes, scale)
        edges = unique_edges(cluster[edges.a], cluster[edges.b], edges.values)
        ones, zero = np.ones(len(sums)), scale._replace(base=0.0)
        a, b = _equal(edges, _affinities(sums, sizes, ones, edges.a, edges.b, zero))
        edges = _linking(edges, _affinities(sums, sizes, cohesions, edges.a, edges.b, scale))
    if not len(a):
        a, b = _mutual_best(edges, len(sums))
    while len(a):
        into = _joined(a, b, len(sums))
        gone = np.flatnonzero(into != np.arange(len(sums)))
        np.add.at(sums, into[gone], sums[gone])
        np.add.at(sizes, into[gone], sizes[gone])
        grown = np.zeros(len(sums), bool)
        grown[into[gone]] = True
        cohesions[grown] = _cohesions(sums, np.flatnonzero(grown), sizes, scale)
        cluster = into[cluster]
        edges = unique_edges(into[edges.a], into[edges.b], edges.values)
        changed = grown[edges.a] | grown[edges.b]
        edges.values[changed] = _affinities(sums, sizes, cohesions, edges.a[changed], edges.b[changed], scale)
        edges = _linking(edges, edges.values)
        a, b = _mutual_best(edges, len(sums))
    return np.unique(cluster, return_inverse=True)[1]


def _linking(edges: Edges, values: NDArray[np.float32]) -> Edges:
    """Return the edges whose affinities reach the threshold."""
    kept = values >= np.float32(RATIO * (1 - 1e-6))
    return Edges(a=edges.a[kept], b=edges.b[kept], values=values[kept])


def _equal(edges: Edges, cosines: NDArray[np.float32]) -> tuple[Ints, Ints]:
    """Return the edges, of these mean cosines, between copies of a picture."""
    equal = cosines >= EQUAL
    return edges.a[equal], edges.b[equal]


def _joined(a: Ints, b: Ints, count: int) -> Ints:
    """Return the first of the group (N,) that each is in when a (E,) and b (E,) are joined."""
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    return np.unique(group, return_index=True)[1].astype(a.dtype)[group]


def _mutual_best(edges: Edges, count: int) -> tuple[Ints, Ints]:
    """Return the edges that are the best of both of their ends; ties by the edges' order."""
    order = np.argsort(-edges.values, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    best = np.full(count, len(order))
    np.minimum.at(best, edges.a, rank)
    np.minimum.at(best, edges.b, rank)
    mutual = (best[edges.a] == rank) & (best[edges.b] == rank)
    return edges.a[mutual], edges.b[mutual]


@compiled
def _cohesions(
    sums: NDArray[np.float32], clusters: Ints, sizes: NDArray[np.float64], scale: Scale
) -> NDArray[np.float64]:
    found = np.empty(len(clusters))
    for place, own in enumerate(clusters):
        found[place] = cohesion(dot(sums[own], sums[own]), sizes[own], scale)
    return found


@compiled
def _affinities(
    sums: NDArray[np.float32],
    sizes: NDArray[np.float64],
    cohesions: NDArray[np.float64],
    a: Ints,
    b: Ints,
    scale: Scale,
) -> NDArray[np.float32]:
    """Return the affinities (E,) of clusters a and b."""
    found = np.empty(len(a), np.float32)
    for edge in range(len(a)):
        one, two = a[edge], b[edge]
        product = dot(sums[one], sums[two])
        found[edge] = affinity(product, sizes[one] * sizes[two], cohesions[one], cohesions[two], scale)
    return found
