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


@pytest.mark.parametrize("count", [1, 3])
def test_estimated_threshold_of_equal_images_is_not_above_one(count: int) -> None:
    vectors = np.repeat(np.eye(1, 8, dtype=np.float32), count, axis=0)
    near = nearest(vectors, 1).cosines[:, 0]
    assert estimated_threshold(vectors, near, lambda each: np.zeros(count, np.int64), 0.6) <= 1.02
