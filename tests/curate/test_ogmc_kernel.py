"""The compiled core of online clustering: each step on states built by hand equals a loop over the images."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate import ogmc_kernel as kernel
from rayface.curate.affinity import RATIO, affinity, cohesion, scale_of
from rayface.curate.ogmc_kernel import COMPONENTS, FREE, IDENTITIES, State, Thresholds, reconsider
from rayface.curate.ogmc_state import NEIGHBOURS, empty_state, with_room

SCALE = scale_of(0.4, 0.1)
LINK = 0.5
AVERAGE = Thresholds(0.5, RATIO * 0.95, 0, scale_of(LINK, 0.0, np.inf))  # affinities are cosines times RATIO / LINK

Floats = NDArray[np.float32]


def units(count: int, seed: int = 0) -> Floats:
    x = np.random.default_rng(seed).standard_normal((count, 12)) + 0.5
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def at_degrees(*degrees: float) -> Floats:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def state_of(vectors: Floats, component: Any, identity: Any, scale: Any = SCALE) -> State:
    """Return the state of images (n,) in components, of which each (C,) is in an identity and near all others."""
    own, number = np.asarray(component), np.asarray(identity)
    count, identities = len(number), int(number.max()) + 1
    state = with_room(empty_state(vectors.shape[1]), count)
    state.counters[[COMPONENTS, IDENTITIES]] = count, identities
    state.identity[:count] = number
    state.near[:] = -1
    for place in range(count):
        images = vectors[own == place]
        state.sums[place], state.counts[place] = images.sum(axis=0), len(images)
        square = float(state.sums[place] @ state.sums[place])
        state.mean2[place] = square / max(1, len(images)) ** 2
        state.own_cohesions[place] = cohesion(square, float(len(images)), scale)
        others = np.delete(np.arange(count), place)[:NEIGHBOURS]
        state.near[place, : len(others)] = others
    for name in range(identities):
        ring, total = np.flatnonzero(number == name), vectors[number[own] == name].sum(axis=0)
        state.following[ring], state.preceding[np.roll(ring, -1)] = np.roll(ring, -1), ring
        state.identity_sums[name], state.sizes[name] = total, len(ring)
        state.identity_counts[name] = state.counts[ring].sum()
        state.cohesions[name] = cohesion(float(total @ total), state.identity_counts[name], scale)
    return state


def by_pairs(a: Floats, b: Floats) -> float:
    """The affinity of two groups of images from all pairs."""
    held = [cohesion(float(np.square(x.sum(axis=0)).sum()), float(len(x)), SCALE) for x in (a, b)]
    return float(affinity(float((a @ b.T).sum()), float(len(a) * len(b)), *held, SCALE))


def test_nearest_candidates_are_those_of_a_sort_by_distance_to_the_mean() -> None:
    vectors, own = units(90), np.arange(90) % 30
    state = state_of(vectors, own, np.arange(30))
    state.counts[[4, 27]] = 0  # deleted
    asked, first_new = np.array([3, -1, 8, 3, 4, 19, 0, 11, 8, 1, 2, 24, 5, 6, 7]), 18
    nearest, distances = np.empty(NEIGHBOURS + 1, np.int64), np.empty(NEIGHBOURS + 1)
    for query in units(5, seed=1):
        count = kernel._nearest(query, asked, first_new, state, nearest, distances)
        known = {*asked.tolist(), *range(first_new, 30)} - {-1, 4, 27}
        means = [vectors[own == place].astype(np.float64).mean(axis=0) for place in known]
        wanted = sorted((float(np.square(query - mean).sum()), place) for mean, place in zip(means, known, strict=True))
        assert len(wanted) > count == NEIGHBOURS + 1
        assert nearest.tolist() == [place for _, place in wanted[:count]]
        assert distances == pytest.approx([distance for distance, _ in wanted[:count]], abs=1e-5)
    assert kernel._nearest(query, np.array([-1, 4, 6]), 30, state, nearest, distances) == 1
    assert nearest[0] == 6


def test_inside_is_the_affinity_of_a_component_to_the_other_images_of_its_identity() -> None:
    vectors, own = units(40), np.arange(40) % 4
    state = state_of(vectors, own, [0, 0, 0, 1])
    wanted = by_pairs(vectors[own == 1], vectors[(own == 0) | (own == 2)])
    assert kernel._inside(1, state, SCALE) == pytest.approx(wanted, abs=1e-5)


def test_best_is_the_near_component_whose_identity_has_the_highest_affinity() -> None:
    vectors, own = units(60), np.arange(60) % 10
    identity = np.array([0, 0, 1, 1, 2, 3, 3, 4, 5, 5])
    state = state_of(vectors, own, identity)
    group = vectors[own == 0]
    values = [by_pairs(group, vectors[identity[own] == name]) for name in range(1, 6)]
    order = np.argsort(values)[::-1] + 1
    args = state.sums[0], state.counts[0], state.own_cohesions[0], state, SCALE
    for last, name in enumerate(order):
        best, value = kernel._best(0, *args)
        assert identity[best] == name
        assert value == pytest.approx(values[name - 1], abs=1e-5)
        if last % 2:  # not near, or deleted
            state.near[0][np.isin(state.near[0], np.flatnonzero(identity == name))] = -1
        else:
            state.counts[: len(identity)][identity == name] = 0
    assert kernel._best(0, *args)[0] == -1


@pytest.mark.parametrize(
    ("degrees", "identity", "found"),
    [
        ((53, 0, 90), (0, 0, 1), (2, 0, 2)),  # cosine .6 inside, .8 outside: it changes over
        ((73, 0, 180), (0, 0, 1), (2, 0, 1)),  # .29 inside, less outside: it leaves
        ((61, 0, 180), (0, 0, 1), (0, 0, 1)),  # .485, within the slack: it stays
        ((0, 59, 180), (0, 1, 2), (0, 0, 2)),  # .515: they merge
        ((0, 61, 180), (0, 1, 2), (0, 1, 2)),  # .485: they do not
        ((0, 40, 45), (0, 1, 1), (1, 1, 1)),  # the identity of more components keeps its number
        ((40, 0, 45), (1, 0, 1), (1, 1, 1)),
    ],
)
def test_reconsider_lets_a_component_leave_and_its_identity_merge(degrees: Any, identity: Any, found: Any) -> None:
    state = state_of(at_degrees(*degrees), range(3), identity, AVERAGE.scale)
    before = int(state.counters[IDENTITIES])
    reconsider(0, state, AVERAGE)
    assert state.identity[:3].tolist() == list(found)
    identities, free = int(state.counters[IDENTITIES]), state.free[: state.counters[FREE]].tolist()
    assert identities == max(before, max(found) + 1)
    assert sorted({*free, *found}) == list(range(identities))
    assert state.sizes[:identities].tolist() == np.bincount(found, minlength=identities).tolist()
    assert state.identity_counts[:identities].tolist() == state.sizes[:identities].tolist()


def test_remember_keeps_candidates_and_replaces_the_oldest() -> None:
    vectors = units(40)
    state = state_of(vectors, np.arange(40), np.arange(40))
    state.near[:], state.oldest[:] = -1, 0
    for _ in range(2):
        kernel._remember(0, np.array([3, 0, 5]), state)
        assert state.near[0, :3].tolist() == [3, 5, -1]
        assert [state.near[other, :2].tolist() for other in (3, 5)] == [[0, -1]] * 2
    for own in range(10, 10 + NEIGHBOURS):
        kernel._remember(own, np.array([3]), state)
    assert state.near[3].tolist() == [25, *range(10, 25)]
    kernel._remember(39, np.arange(20, 37), state)
    assert state.near[39].tolist() == list(range(20, 36))


def test_add_vectors_leaves_the_state_of_their_components_and_identities() -> None:
    vectors = units(80)
    limits = Thresholds(0.4, RATIO * 0.95, 2, SCALE)
    state = with_room(empty_state(12), 80)
    component = kernel.add_vectors(vectors, np.empty((80, 0), np.int64), 0, state, limits)
    components, identities, free, _ = state.counters.tolist()
    assert identities - free < components < 80
    wanted = state_of(vectors, component, state.identity[:components])
    used = np.unique(state.identity[:components])
    for name in ("sums", "counts", "mean2", "own_cohesions"):
        assert getattr(state, name)[:components] == pytest.approx(getattr(wanted, name)[:components], abs=1e-4), name
    for name in ("identity_sums", "identity_counts", "cohesions", "sizes"):
        assert getattr(state, name)[used] == pytest.approx(getattr(wanted, name)[used], abs=1e-4), name
    alone = with_room(empty_state(12), 2)
    kernel.add_vectors(vectors[[0, 0]], np.empty((2, 0), np.int64), 0, alone, limits)
    assert alone.cohesions[0] == alone.own_cohesions[0] > SCALE.expected


def test_add_vectors_joins_within_the_radius_and_revisits_components_in_turn() -> None:
    vectors = at_degrees(0, 41, 180, 222, 0, 0, 0)
    state, cursors = with_room(empty_state(2), 7), []
    component = []
    for vector in vectors:
        component += kernel.add_vectors(
            vector[None], np.empty((1, 0), np.int64), 0, state, AVERAGE._replace(revisits=1)
        ).tolist()
        cursors.append(int(state.counters[kernel.CURSOR]))
        if len(component) == 1:
            assert set(state.near[0].tolist()) == {-1}
    assert component == [0, 0, 1, 2, 0, 0, 0]
    assert cursors == [0, 0, 1, 2, 0, 1, 2]


def test_add_vectors_does_not_revisit_a_deleted_component_whose_identity_is_of_others_now() -> None:
    state = state_of(at_degrees(0, 5, 55), [1, 2, 3], [0, 0, 0, 1], AVERAGE.scale)
    state.near[1:4] = -1  # only the deleted one knows component 3
    kernel.add_vectors(at_degrees(5), np.array([[2]]), 4, with_room(state, 1), AVERAGE._replace(revisits=4))
    assert state.identity[:4].tolist() == [0, 0, 0, 1]
