"""Scores of clusters: equal to loops over all pairs and images, and to scikit-learn's where it has them."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as theirs

from rayface.curate.cluster.metrics import cluster_scores

Ints = NDArray[np.int64]


def drawn(seed: int) -> tuple[Ints, Ints]:
    """Labels of 60 images, and clusters that agree with most of them; a tenth is noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 9, 60)
    clusters = np.where(random.random(60) < 0.3, random.integers(0, 14, 60), labels + 5)
    clusters[random.random(60) < 0.1] = -1
    return labels, clusters


def apart(clusters: Ints) -> Ints:
    """Clusters with each image of noise in one of its own."""
    return np.where(clusters < 0, 1000 + np.arange(len(clusters)), clusters)


def by_pairs(labels: Ints, clusters: Ints) -> tuple[float, float, float]:
    both = found = known = 0
    for i in range(len(labels)):
        for j in range(i):
            both += labels[i] == labels[j] and clusters[i] == clusters[j]
            found += clusters[i] == clusters[j]
            known += labels[i] == labels[j]
    precision, recall = both / found, both / known
    return precision, recall, 2 * precision * recall / (precision + recall)


def by_images(labels: Ints, clusters: Ints) -> tuple[float, float, float]:
    precision, recall = [], []
    for label, cluster in zip(labels, clusters, strict=True):
        precision.append(np.mean(labels[clusters == cluster] == label))
        recall.append(np.mean(clusters[labels == label] == cluster))
    p, r = float(np.mean(precision)), float(np.mean(recall))
    return p, r, 2 * p * r / (p + r)


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_drawn_clusters_equal_those_of_loops(seed: int) -> None:
    labels, clusters = drawn(seed)
    scores, single = cluster_scores(labels, clusters), apart(clusters)
    assert (scores.pairwise_precision, scores.pairwise_recall, scores.pairwise_f) == pytest.approx(
        by_pairs(labels, single)
    )
    assert (scores.bcubed_precision, scores.bcubed_recall, scores.bcubed_f) == pytest.approx(by_images(labels, single))
    counts = [max(np.bincount(labels[single == cluster])) for cluster in np.unique(single)]
    assert scores.purity == pytest.approx(sum(counts) / len(labels))


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_drawn_clusters_equal_those_of_scikit_learn(seed: int) -> None:
    labels, clusters = drawn(seed)
    scores, single = cluster_scores(labels, clusters), apart(clusters)
    (_, wrong), (missed, right) = theirs.pair_confusion_matrix(labels, single)
    assert scores.pairwise_f == pytest.approx(2 * right / (2 * right + wrong + missed))
    assert scores.nmi == pytest.approx(theirs.normalized_mutual_info_score(labels, single))


def test_scores_do_not_depend_on_the_numbers_of_clusters_and_labels() -> None:
    labels, clusters = drawn(0)
    names = np.random.default_rng(1).permutation(2000)
    renamed = np.where(clusters < 0, -1, names[clusters] + 2**40)
    assert cluster_scores(labels - 7, renamed) == cluster_scores(labels, clusters)


def test_counts_leave_noise_out_of_clusters_and_singletons() -> None:
    scores = cluster_scores([0, 0, 1, 1, 2, 2], [4, 4, 7, 9, -1, -1])
    counts = (scores.num_clusters, scores.num_singletons, scores.num_noise, scores.num_labels)
    assert counts == (3, 2, 2, 3)


@pytest.mark.parametrize(
    ("clusters", "f", "bcubed", "nmi"),
    [([3, 3, 8, 8], 1.0, 1.0, 1.0), ([-1, -1, -1, -1], 0.0, 2 / 3, 2 / 3), ([0, 0, 0, 0], 0.5, 2 / 3, 0.0)],
)
def test_scores_of_perfect_no_and_one_cluster(clusters: list[int], f: float, bcubed: float, nmi: float) -> None:
    scores = cluster_scores([0, 0, 1, 1], clusters)
    assert (scores.pairwise_f, scores.bcubed_f, scores.nmi) == pytest.approx((f, bcubed, nmi))


@pytest.mark.parametrize(
    ("labels", "clusters", "precision", "recall"), [([0, 0, 1], [-1, -1, 4], 1, 0), ([0, 1, 2], [7, 7, 4], 0, 1)]
)
def test_share_of_no_pairs_at_all_is_one(
    labels: list[int], clusters: list[int], precision: float, recall: float
) -> None:
    scores = cluster_scores(labels, clusters)
    assert (scores.pairwise_precision, scores.pairwise_recall, scores.pairwise_f) == (precision, recall, 0)


def test_scores_of_one_image_are_perfect() -> None:
    scores = cluster_scores([5], [-1])
    assert (scores.pairwise_f, scores.bcubed_f, scores.nmi, scores.purity) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("labels", "clusters"), [([], []), ([0, 1], [0]), ([[0]], [[0]]), (["a"], [0]), ([np.nan], [0]), ([0], [None])]
)
def test_scores_of_other_shapes_or_types_are_refused(labels: Any, clusters: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        cluster_scores(labels, clusters)
