"""Average linkage: on a complete graph the clusters of scikit-learn's."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering

from rayface.curate.cluster.linkage import average_linkage
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.neighbours import nearest

People = Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]


@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.6])
def test_average_linkage_on_a_complete_graph_equals_that_of_scikit_learn(people: People, threshold: float) -> None:
    vectors, _ = people(12, 15, spread=1.4)
    theirs = AgglomerativeClustering(
        None, metric="cosine", linkage="average", distance_threshold=1 - threshold
    ).fit_predict(vectors)
    own = average_linkage(vectors, nearest(vectors, len(vectors) - 1).edges(threshold), threshold)
    assert cluster_scores(theirs, own).pairwise_f == 1
    assert own.max() == theirs.max()


def test_average_linkage_without_edges_leaves_every_image_alone(people: People) -> None:
    vectors, _ = people(3, 4)
    assert average_linkage(vectors, nearest(vectors, 3).edges(1.5), 1.5).tolist() == list(range(12))


def test_average_linkage_of_another_order_of_images_finds_the_same_clusters(people: People) -> None:
    vectors, _ = people(20, 10, spread=1.2)
    order = np.random.default_rng(1).permutation(len(vectors))
    own = average_linkage(vectors, nearest(vectors, 20).edges(0.3), 0.3)
    other = average_linkage(vectors[order], nearest(vectors[order], 20).edges(0.3), 0.3)
    assert cluster_scores(own[order], other).pairwise_f == 1


def test_average_linkage_of_duplicates_makes_one_cluster() -> None:
    vectors = np.repeat(np.eye(3, 8, dtype=np.float32), 5, axis=0)
    assert average_linkage(vectors, nearest(vectors, 3).edges(0.5), 0.5).tolist() == [0] * 5 + [1] * 5 + [2] * 5
