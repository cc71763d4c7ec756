"""Linkage: with an infinite prior the clusters of scikit-learn's average linkage, else by cohesion."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering

from rayface.curate.affinity import RATIO, Scale, affinity, base_cosine, cohesion, scale_of
from rayface.curate.cluster import linkage as module
from rayface.curate.cluster.linkage import linked
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.neighbours import nearest

Floats = NDArray[np.float32]
People = Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]


def average(vectors: Floats, count: int, threshold: float) -> NDArray[np.int64]:
    return linked(vectors, nearest(vectors, count).edges(threshold), scale_of(threshold, -1.0, np.inf))


@pytest.mark.parametrize("threshold", [0.2, 0.35, 0.6])
def test_linked_on_a_complete_graph_equals_that_of_scikit_learn(people: People, threshold: float) -> None:
    vectors, _ = people(12, 15, spread=1.4)
    theirs = AgglomerativeClustering(
        None, metric="cosine", linkage="average", distance_threshold=1 - threshold
    ).fit_predict(vectors)
    own = average(vectors, len(vectors) - 1, threshold)
    assert cluster_scores(theirs, own).pairwise_f == 1
    assert own.max() == theirs.max()


def test_linked_without_edges_leaves_every_image_alone(people: People) -> None:
    vectors, _ = people(3, 4)
    assert average(vectors, 3, 1.5).tolist() == list(range(12))


def test_linked_of_another_order_of_images_finds_the_same_clusters(people: People) -> None:
    vectors, _ = people(20, 10, spread=1.2)
    order = np.random.default_rng(1).permutation(len(vectors))
    own = average(vectors, 20, 0.3)
    other = average(vectors[order], 20, 0.3)
    assert cluster_scores(own[order], other).pairwise_f == 1


def test_linked_of_duplicates_makes_one_cluster() -> None:
    vectors = np.repeat(np.eye(3, 8, dtype=np.float32), 5, axis=0)
    assert average(vectors, 3, 0.5).tolist() == [0] * 5 + [1] * 5 + [2] * 5


def by_loops(vectors: Floats, start: NDArray[np.int64], scale: Scale) -> list[list[int]]:
    """The definition with all pairs as edges: in rounds, clusters that are each other's best merge."""
    groups = [np.flatnonzero(start == name).tolist() for name in np.unique(start)]
    near = ~np.eye(len(groups), dtype=bool)
    while True:
        sums = np.array([vectors[rows].sum(axis=0, dtype=np.float64) for rows in groups])
        held = [cohesion(float(own @ own), float(len(rows)), scale) for own, rows in zip(sums, groups, strict=True)]
        values = np.full(near.shape, -np.inf)
        for i, j in np.argwhere(near):
            count = float(len(groups[i]) * len(groups[j]))
            values[i, j] = affinity(float(sums[i] @ sums[j]), count, held[i], held[j], scale)
        near = values >= RATIO
        best = values.argmax(axis=1)
        pairs = [(i, j) for i, j in enumerate(best.tolist()) if i < j and best[j] == i and near[i, j]]
        if not pairs:
            return sorted(map(sorted, groups))
        for i, j in pairs:
            groups[i] += groups[j]
            near[i], near[:, i] = near[i] | near[j], near[:, i] | near[:, j]
        stay = np.setdiff1d(np.arange(len(groups)), [j for _, j in pairs])
        groups, near = [groups[i] for i in stay], near[np.ix_(stay, stay)] & ~np.eye(len(stay), dtype=bool)


@pytest.mark.parametrize("prior", [3.0, 60.0, np.inf])
@pytest.mark.parametrize("parts", [False, True])
def test_linked_on_a_complete_graph_equals_the_definition(people: People, prior: float, parts: bool) -> None:
    vectors, labels = people(12, 12, spread=1.2)
    random = np.random.default_rng(0)
    start = labels * 5 + random.integers(0, 5, len(labels)) if parts else np.arange(len(labels))
    scale = scale_of(0.3, 0.05, prior)
    found = linked(vectors, nearest(vectors, len(labels) - 1).edges(-1.0), scale, start if parts else None)
    wanted = by_loops(vectors, start, scale)
    assert sorted(np.flatnonzero(found == number).tolist() for number in range(len(wanted))) == wanted
    assert 12 <= len(wanted) < len(np.unique(start)) / 1.5


def test_linked_of_a_pair_exactly_at_the_threshold_merges_it() -> None:
    vectors = np.array([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, -0.5]], np.float32)  # cosine .5, without rounding
    assert average(vectors, 1, 0.5).tolist() == [0, 0]


def test_linked_of_images_nearly_equal_but_below_the_threshold_leaves_them_apart() -> None:
    vectors = np.array([[1, 0], [0.995, (1 - 0.995**2) ** 0.5]], np.float32)
    for start in (None, np.arange(2)):
        found = linked(vectors, nearest(vectors, 1).edges(-1.0), scale_of(0.999, -1.0, np.inf), start)
        assert found.tolist() == [0, 1]


@pytest.mark.parametrize("prior", [60.0, np.inf])
@pytest.mark.parametrize("parts", [False, True])
def test_linked_with_many_copies_of_a_picture_takes_hardly_more_rounds(
    people: People, monkeypatch: pytest.MonkeyPatch, prior: float, parts: bool
) -> None:
    vectors, _ = people(25, 8, spread=0.8)
    rounds: list[int] = []
    best = module._mutual_best
    monkeypatch.setattr(module, "_mutual_best", lambda edges, count: rounds.append(count) or best(edges, count))

    def clusters(copies: int) -> tuple[NDArray[np.int64], int]:
        own = np.concatenate([vectors, np.repeat(vectors[:1], copies, axis=0)])
        start = np.r_[np.arange(0, 200) // 2, np.arange(200, len(own))] if parts else None
        rounds.clear()
        found = linked(own, nearest(own, 10).edges(0.4), scale_of(0.4, 0.05, prior), start)
        return found, len(rounds)

    (alone, before), (found, after) = clusters(0), clusters(300)
    assert after <= before + 3
    assert len(set(found[200:].tolist())) == 1
    if not parts:
        assert found[200] == found[0]
        assert cluster_scores(alone, found[:200]).pairwise_f > 0.95


def test_linked_by_cohesion_fits_tight_and_loose_persons_with_one_threshold() -> None:
    random = np.random.default_rng(0)
    alike = np.repeat(random.standard_normal((1, 64)), 2, axis=0) + 0.55 * random.standard_normal((2, 64))
    loose = 1.2 * random.standard_normal((2, 64))
    labels = np.repeat(np.arange(4), 30)
    noise = np.where(labels < 2, 0.25, 1.1)[:, None] * random.standard_normal((120, 64))
    vectors = np.concatenate([alike, loose])[labels] + noise  # two twins whose images are alike, two who vary
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    near = nearest(vectors, 119)
    threshold = 0.45
    scale = scale_of(threshold, base_cosine(np.concatenate([vectors, -vectors])))
    by_cohesion = cluster_scores(labels, linked(vectors, near.edges(threshold), scale)).pairwise_f
    assert by_cohesion > 0.98
    assert by_cohesion > cluster_scores(labels, average(vectors, 119, threshold)).pairwise_f + 0.1


@pytest.mark.parametrize("parts", [False, True])
def test_linked_by_int32_rows_takes_no_more_memory_than_documented_and_finds_the_same(
    people: People, parts: bool
) -> None:
    vectors, labels = people(500, 10, spread=1.2)
    near = nearest(vectors, 30)
    start = labels * 2 + np.arange(len(labels)) % 2 if parts else None
    edges, scale = replace(near, rows=near.rows.astype(np.int32)).edges(-1.0), scale_of(0.3, 0.0, np.inf)
    found = linked(vectors, edges, scale, start)  # compiles
    tracemalloc.start()
    try:
        linked(vectors, edges, scale, start)
        assert tracemalloc.get_traced_memory()[1] < 40 * len(edges.a) + (4 * 32 + 40) * len(vectors)
    finally:
        tracemalloc.stop()
    assert (found == linked(vectors, near.edges(-1.0), scale, start)).all()
