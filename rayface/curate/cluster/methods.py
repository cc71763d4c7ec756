"""Offline clustering methods on a graph of nearest neighbours, all training-free; each takes one threshold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rayface.arrays import Floats, Ints
from rayface.curate.affinity import base_cosine, scale_of
from rayface.curate.cluster.linkage import linked
from rayface.curate.cluster.neighbours import Neighbours

Method = Callable[[Floats, Neighbours, float], Ints]
"""Takes unit vectors (N, D), their neighbours and a threshold cosine; returns the cluster (N,) of each image."""

_DENSITY_NEIGHBOURS = 16


def cohesive(vectors: Floats, neighbours: Neighbours, threshold: float) -> Ints:
    """Merge clusters while their mean cosine is high for how cohesive they are; see `affinity` and `linkage`.

    Args:
        threshold: cosine from which two single images are one person.
    """
    scale = scale_of(threshold, base_cosine(vectors, threshold))
    return linked(vectors, neighbours.edges(threshold), scale)


def average(vectors: Floats, neighbours: Neighbours, threshold: float) -> Ints:
    """Merge clusters while the mean cosine of their pairs is at least the threshold."""
    return linked(vectors, neighbours.edges(threshold), scale_of(threshold, -1.0, np.inf))


def components(vectors: Floats, neighbours: Neighbours, threshold: float) -> Ints:
    """Connect images that are among each other's neighbours with at least the threshold cosine."""
    near = neighbours.near(threshold)
    rows = np.repeat(np.arange(len(near), dtype=neighbours.rows.dtype), np.count_nonzero(near, axis=1))
    graph = _graph(rows, neighbours.rows[near], len(vectors)).tocsr()
    return _connected(graph.multiply(graph.T))


def density(vectors: Floats, neighbours: Neighbours, threshold: float) -> Ints:
    """Connect each image to its nearest neighbour in a denser place, if their cosine is at least the threshold.

    The density of an image is the sum of its cosines to its nearest neighbours that reach the threshold, so that a
    cluster grows around its densest images and a sparse bridge between two persons connects nothing.
    """
    reach = neighbours.near(threshold)[:, :_DENSITY_NEIGHBOURS]
    dense = np.where(reach, neighbours.cosines[:, :_DENSITY_NEIGHBOURS], 0).sum(axis=1)
    others = neighbours.rows[:, :_DENSITY_NEIGHBOURS]
    higher = reach & (
        (dense[others] > dense[:, None])
        | ((dense[others] == dense[:, None]) & (others < np.arange(len(dense))[:, None]))
    )
    rows = np.flatnonzero(higher.any(axis=1))
    return _connected(_graph(rows, others[rows, higher[rows].argmax(axis=1)], len(vectors)))


def merged_clusters(vectors: Floats, neighbours: Neighbours, threshold: float, clusters: Ints) -> Ints:
    """Return the clusters (N,) after merging those that are one person, as `cohesive` does with single images."""
    scale = scale_of(threshold, base_cosine(vectors, threshold))
    return linked(vectors, neighbours.edges(threshold), scale, clusters)


METHODS: dict[str, Method] = {"cohesive": cohesive, "average": average, "components": components, "density": density}


def _graph(a: Ints, b: Ints, count: int) -> coo_array:
    return coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count))


def _connected(graph: NDArray[np.bool_] | coo_array) -> Ints:
    found: Ints = connected_components(graph, directed=False)[1].astype(np.int64)
    return found
