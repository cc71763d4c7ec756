"""Offline methods: drawn persons are found by each, and each follows its rule on a few vectors."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate.cluster.methods import METHODS, components, density, merged_clusters
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.neighbours import Neighbours, nearest

People = Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]


@pytest.mark.parametrize("name", METHODS)
def test_methods_find_persons_that_are_far_apart(people: People, name: str) -> None:
    vectors, labels = people(15, 12, spread=0.6)
    found = METHODS[name](vectors, nearest(vectors, 11), 0.5)
    assert cluster_scores(labels, found).pairwise_f == 1


@pytest.mark.parametrize("name", METHODS)
def test_methods_with_a_threshold_above_all_cosines_leave_images_alone(people: People, name: str) -> None:
    vectors, _ = people(4, 3)
    assert len(set(METHODS[name](vectors, nearest(vectors, 5), 1.1).tolist())) == 12


@pytest.mark.parametrize("name", METHODS)
def test_methods_at_a_threshold_of_one_join_copies_only(people: People, name: str) -> None:
    """Cosines of copies are 1 but for rounding."""
    vectors = np.repeat(people(4, 1, size=33)[0], 3, axis=0)
    near = nearest(vectors, 2)
    assert (near.cosines < 1).any()
    assert METHODS[name](vectors, near, 1.0).tolist() == np.repeat(np.arange(4), 3).tolist()


def test_cohesive_of_images_that_are_mostly_of_one_person_finds_the_persons() -> None:
    vectors = np.repeat(np.eye(2, 8, dtype=np.float32), [9, 1], axis=0)
    near, labels = nearest(vectors, 3), [0] * 9 + [1]
    assert METHODS["cohesive"](vectors, near, 0.5).tolist() == labels
    assert merged_clusters(vectors, near, 0.5, np.arange(10) // 2).tolist() == [*labels[:8], 1, 1]


def test_components_connect_only_mutual_neighbours() -> None:
    rows = np.array([[1], [2], [1]])
    found = components(np.eye(3), Neighbours(rows=rows, cosines=np.full((3, 1), 0.9, np.float32)), 0.5)
    assert found[1] == found[2] != found[0]


def test_density_does_not_connect_two_persons_through_a_bridge() -> None:
    angles = np.radians([0, 4, 8, 12, 30, 48, 52, 56, 60])  # the fifth lies between two groups
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    threshold = float(np.cos(np.radians(18.5)))
    near = nearest(vectors, 8)
    assert len(set(components(vectors, near, threshold).tolist())) == 1
    found = density(vectors, near, threshold)
    assert len(set(found[:4].tolist())) == len(set(found[5:].tolist())) == 1
    assert found[0] != found[8]


def test_density_connects_images_in_equally_dense_places() -> None:
    vectors = np.repeat(np.eye(2, 4, dtype=np.float32), [2, 1], axis=0)
    assert density(vectors, nearest(vectors, 2), 0.5).tolist() == [0, 0, 1]


def test_average_at_a_threshold_below_zero_merges_what_is_not_opposite() -> None:
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    assert len(set(METHODS["average"](vectors[:2], nearest(vectors[:2], 1), -0.1).tolist())) == 1
    assert len(set(METHODS["average"](vectors[::2], nearest(vectors[::2], 1), -0.1).tolist())) == 2
