"""Scores of clusters against known labels, from a sparse contingency table: O(N log N), no pairs of images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import Ints

NOISE = -1
"""Cluster of images that belong to none; the scores count each as a cluster of its own."""


@dataclass(frozen=True, kw_only=True)
class ClusterScores:
    """Scores of a clustering, from 0 to 1, and its counts.

    Attributes:
        pairwise_precision, pairwise_recall, pairwise_f: over pairs of images in one cluster and of one label.
        bcubed_precision, bcubed_recall, bcubed_f: the share of the same label in an image's cluster, and of its label
            in the same cluster, mean over images.
        nmi: mutual information of clusters and labels, divided by the mean of their entropies.
        purity: share of the images that have the most frequent label of their cluster.
        num_clusters: clusters, noise not counted.
        num_singletons: clusters of one image, noise not counted.
        num_noise: images in no cluster.
        num_labels: distinct labels.
    """

    pairwise_precision: float
    pairwise_recall: float
    pairwise_f: float
    bcubed_precision: float
    bcubed_recall: float
    bcubed_f: float
    nmi: float
    purity: float
    num_clusters: int
    num_singletons: int
    num_noise: int
    num_labels: int


@dataclass(frozen=True, kw_only=True)
class _Contingency:
    """Counts (n,) of images by label and cluster, only those above 0, and the sums of each label and cluster."""

    counts: NDArray[np.float64]
    label: Ints
    cluster: Ints
    label_sizes: NDArray[np.float64]
    cluster_sizes: NDArray[np.float64]


def cluster_scores(labels: ArrayLike, clusters: ArrayLike) -> ClusterScores:
    """Score clusters against labels.

    Args:
        labels: (N,) integers, the identities.
        clusters: (N,) integers; -1: noise.

    Raises:
        ValueError: no images, other shapes, or other types.
    """
    known, found = np.asarray(labels), np.asarray(clusters)
    if known.ndim != 1 or known.shape != found.shape or not len(known):
        raise ValueError(f"labels {known.shape}, clusters {found.shape}: must be (N,), equally many, at least one")
    if known.dtype.kind not in "iu" or found.dtype.kind not in "iu":
        raise ValueError(f"labels {known.dtype}, clusters {found.dtype}: must be integers")
    noise = found == NOISE
    names, sizes = np.unique(found[~noise], return_counts=True)
    alone = np.where(noise, (names[-1] if len(names) else 0) + np.cumsum(noise), found)
    table = _contingency(known, alone)
    precision, recall, f = _pairwise(table)
    squares = table.counts**2
    total = float(len(known))
    bcubed_precision = float((squares / table.cluster_sizes[table.cluster]).sum() / total)
    bcubed_recall = float((squares / table.label_sizes[table.label]).sum() / total)
    largest = np.zeros(len(table.cluster_sizes))
    np.maximum.at(largest, table.cluster, table.counts)
    return ClusterScores(
        pairwise_precision=precision,
        pairwise_recall=recall,
        pairwise_f=f,
        bcubed_precision=bcubed_precision,
        bcubed_recall=bcubed_recall,
        bcubed_f=2 * bcubed_precision * bcubed_recall / (bcubed_precision + bcubed_recall),
        nmi=_nmi(table),
        purity=float(largest.sum() / total),
        num_clusters=len(names),
        num_singletons=int(np.count_nonzero(sizes == 1)),
        num_noise=int(np.count_nonzero(noise)),
        num_labels=len(table.label_sizes),
    )


def _contingency(labels: NDArray[np.generic], clusters: NDArray[np.generic]) -> _Contingency:
    names, label = np.unique(labels, return_inverse=True)
    groups, cluster = np.unique(clusters, return_inverse=True)
    cells, counts = np.unique(label.astype(np.int64) * len(groups) + cluster, return_counts=True)
    return _Contingency(
        counts=counts.astype(np.float64),
        label=cells // len(groups),
        cluster=cells % len(groups),
        label_sizes=np.bincount(label, minlength=len(names)).astype(np.float64),
        cluster_sizes=np.bincount(cluster, minlength=len(groups)).astype(np.float64),
    )


def _pairwise(table: _Contingency) -> tuple[float, float, float]:
    """Return precision, recall and F over pairs; 1 where there is no pair to be wrong about."""
    both, found, known = (
        float((sizes * (sizes - 1)).sum()) for sizes in (table.counts, table.cluster_sizes, table.label_sizes)
    )
    f = 2 * both / (found + known) if found + known else 1.0
    return both / found if found else 1.0, both / known if known else 1.0, f


def _nmi(table: _Contingency) -> float:
    """Return the normalised mutual information, arithmetic mean; 1 for one cluster and one label."""
    total = table.counts.sum()
    expected = table.label_sizes[table.label] * table.cluster_sizes[table.cluster]
    shared = float((table.counts / total * np.log(table.counts * total / expected)).sum())
    entropies = [
        -float((sizes / total * np.log(sizes / total)).sum()) for sizes in (table.label_sizes, table.cluster_sizes)
    ]
    mean = sum(entropies) / 2
    return max(0.0, shared) / mean if mean > 0 else 1.0
