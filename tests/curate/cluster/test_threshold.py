"""Thresholds: the estimate lies between strangers and one person, the best one is where F is highest."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate.cluster import threshold as module
from rayface.curate.cluster.cluster import _MOST
from rayface.curate.cluster.methods import METHODS
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.neighbours import nearest
from rayface.curate.cluster.threshold import best_threshold, estimated_threshold
from rayface.curate.cluster.unit_vectors import silhouettes

People = Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]


@pytest.mark.parametrize(("persons", "images", "spread"), [(20, 8, 0.7), (100, 6, 0.6), (8, 120, 1.2)])
def test_estimated_threshold_separates_few_deep_and_many_shallow_persons(
    people: People, persons: int, images: int, spread: float
) -> None:
    vectors, labels = people(persons, images, spread=spread, size=64)
    near = nearest(vectors, 40)
    method = METHODS["cohesive"]
    threshold = estimated_threshold(vectors, near.cosines[:, 0], lambda each: method(vectors, near, each), 0.6)
    assert cluster_scores(labels, method(vectors, near, threshold)).pairwise_f > 0.95


@pytest.mark.parametrize("name", ["components", "density"])
def test_estimated_threshold_of_methods_that_chain_neighbours_is_near_these(people: People, name: str) -> None:
    vectors, labels = people(60, 12, spread=0.8, size=64)
    near, method = nearest(vectors, 40), METHODS[name]
    threshold = estimated_threshold(vectors, near.cosines[:, 0], lambda each: method(vectors, near, each), _MOST[name])
    assert cluster_scores(labels, method(vectors, near, threshold)).pairwise_f > 0.95


@pytest.mark.parametrize(
    ("means", "chosen"), [([0.9, 0.89, 0.5], 1), ([0.9, 0.86, 0.5], 0), ([-0.5, -0.51, -0.9], 1), ([0.5, 0.9, 0.88], 2)]
)
def test_estimated_threshold_of_nearly_equal_silhouettes_is_the_highest(
    people: People, monkeypatch: pytest.MonkeyPatch, means: list[float], chosen: int
) -> None:
    vectors, labels = people(4, 4)
    found, tried = iter(means), []
    monkeypatch.setattr(module, "_mean_silhouette", lambda *args: next(found))
    near = nearest(vectors, 3).cosines[:, 0]
    threshold = estimated_threshold(vectors, near, lambda each: tried.append(each) or labels, 0.25)
    assert len(tried) == 3
    assert threshold == tried[chosen]


def test_best_threshold_is_that_of_the_highest_f(people: People) -> None:
    vectors, labels = people(20, 8, spread=1.1)
    near = nearest(vectors, 12)
    threshold, score = best_threshold(
        vectors, labels, near.cosines[:, 0], lambda each: METHODS["average"](vectors, near, each)
    )
    tried = [cluster_scores(labels, METHODS["average"](vectors, near, t)).pairwise_f for t in np.linspace(0.1, 0.8, 29)]
    assert score == cluster_scores(labels, METHODS["average"](vectors, near, threshold)).pairwise_f
    assert score >= max(tried) - 0.02


@pytest.mark.parametrize(("lowest", "highest", "chosen"), [(0.39, 0.61, 0.5), (0.505, 0.52, 0.5125)])
def test_best_threshold_is_the_middle_of_a_plateau_also_between_the_steps_of_the_first_grid(
    lowest: float, highest: float, chosen: float
) -> None:
    labels = np.repeat(np.arange(20), 2)
    vectors = np.eye(20, dtype=np.float32)[labels]  # strangers have cosine 0, persons 1

    def cluster(threshold: float) -> NDArray[np.int64]:
        wrong = 0 if lowest <= threshold <= highest else 1 if abs(threshold - 0.5) < 0.02 else 4
        return np.where(labels < wrong, -1, labels)

    assert best_threshold(vectors, labels, np.ones(40, np.float32), cluster) == (pytest.approx(chosen), 1)


def test_mean_silhouette_of_images_alone_in_their_cluster_is_zero(people: People) -> None:
    vectors, labels = people(4, 5)
    clusters = np.where(np.arange(20) == np.flatnonzero(labels == 2)[0], 9, labels)
    x = vectors.astype(np.float64)
    wanted = []
    for row in range(20):
        means = {name: (x[(clusters == name) & (np.arange(20) != row)] @ x[row]).mean() for name in range(4)}
        a, b = 1 - means.pop(labels[row]), 1 - max(means.values())
        wanted.append(0.0 if clusters[row] == 9 else (b - a) / max(a, b))
    found = module._mean_silhouette(vectors, clusters, np.arange(20))
    assert found == pytest.approx(np.mean(wanted), abs=1e-5)
    alone = np.array([[1, 0], [0.6, 0.8]], np.float32)
    assert silhouettes(alone, np.arange(2), alone, np.ones(2, np.int64)).tolist() == [0, 0]


def test_estimated_threshold_of_strangers_alone_is_above_their_cosine() -> None:
    vectors = np.eye(8, dtype=np.float32)
    near = nearest(vectors, 1).cosines[:, 0]
    assert estimated_threshold(vectors, near, lambda each: np.arange(8), 0.6) > 0


@pytest.mark.parametrize("count", [1, 3])
def test_estimated_threshold_of_equal_images_is_not_above_one(count: int) -> None:
    vectors = np.repeat(np.eye(1, 8, dtype=np.float32), count, axis=0)
    near = nearest(vectors, 1).cosines[:, 0]
    assert estimated_threshold(vectors, near, lambda each: np.zeros(count, np.int64), 0.6) <= 1
