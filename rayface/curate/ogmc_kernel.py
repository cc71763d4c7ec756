"""Compiled core of online clustering: one vector at a time, against a bounded number of candidates; see `ogmc`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.compiled import compiled
from rayface.curate.affinity import RATIO, Scale, affinity, cohesion, dot

COMPONENTS, IDENTITIES, FREE, CURSOR = range(4)  # places in State.counters


class State(NamedTuple):
    """C components, of which each identity has a ring, and I identities; capacities may be larger.

    A component is a spherical Gaussian: its mean is sums / counts, its variance 1 - |mean|^2, because all vectors have
    length 1. A component with a count of 0 was deleted.
    """

    sums: NDArray[np.float32]  # (C, D) sum of the component's vectors
    counts: NDArray[np.float64]  # (C,)
    mean2: NDArray[np.float64]  # (C,) squared length of the mean
    own_cohesions: NDArray[np.float64]  # (C,) see `affinity`
    identity: Ints  # (C,) identity of the component
    following: Ints  # (C,) next component of its identity
    preceding: Ints  # (C,)
    near: Ints  # (C, K) components seen near it, -1: none
    oldest: Ints  # (C,) number of replacements in `near`
    identity_sums: NDArray[np.float32]  # (I, D)
    identity_counts: NDArray[np.float64]  # (I,)
    cohesions: NDArray[np.float64]  # (I,) see `affinity`
    sizes: Ints  # (I,) components of the identity
    free: Ints  # (I,) identity numbers to use again, FREE of them
    counters: Ints  # (4,)


class Thresholds(NamedTuple):
    """Squared radius of a component, the affinity below which it leaves its identity, components revisited an image."""

    radius2: float
    leave: float
    revisits: int
    scale: Scale


@compiled
def add_vectors(vectors: NDArray[np.float32], found: Ints, first_new: int, state: State, limits: Thresholds) -> Ints:
    """Add vectors (n, D) in order; return the component (n,) of each.

    Args:
        found: (n, A) candidates of the index, -1: none.
        first_new: first component that is not in the index yet; it and those after it are candidates too.
    """
    component = np.empty(len(vectors), np.int64)
    width = state.near.shape[1]
    nearest, distances = np.empty(width + 1, np.int64), np.empty(width + 1)
    for row in range(len(vectors)):
        count = _nearest(vectors[row], found[row], first_new, state, nearest, distances)
        joined = count > 0 and distances[0] <= limits.radius2
        own = nearest[0] if joined else _new_component(state)
        _update(own, vectors[row], state, limits.scale)
        _remember(own, nearest[:count], state)
        component[row] = own
        reconsider(own, state, limits)
        for _ in range(limits.revisits):
            state.counters[CURSOR] = (state.counters[CURSOR] + 1) % state.counters[COMPONENTS]
            if state.counts[state.counters[CURSOR]] > 0:
                reconsider(state.counters[CURSOR], state, limits)
    return component


@compiled
def _nearest(
    vector: NDArray[np.float32],
    found: Ints,
    first_new: int,
    state: State,
    nearest: Ints,
    distances: NDArray[np.float64],
) -> int:
    """Fill in the nearest candidates and their squared distances to the mean, nearest first; return their number."""
    count = 0
    new = state.counters[COMPONENTS] - first_new
    for place in range(len(found) + new):
        other = found[place] if place < len(found) else first_new + place - len(found)
        if other < 0 or state.counts[other] == 0:
            continue
        distance = 1 - 2 * dot(vector, state.sums[other]) / state.counts[other] + state.mean2[other]
        at = count
        known = False
        for before in range(count):
            known = known or nearest[before] == other
        while at > 0 and distances[at - 1] > distance:
            at -= 1
        if known or at == len(nearest):
            continue
        count = min(count + 1, len(nearest))
        for after in range(count - 1, at, -1):
            nearest[after], distances[after] = nearest[after - 1], distances[after - 1]
        nearest[at], distances[at] = other, distance
    return count


@compiled
def _new_component(state: State) -> int:
    """Return a new, empty component, alone in a new identity."""
    own = state.counters[COMPONENTS]
    state.counters[COMPONENTS] += 1
    state.sums[own] = 0
    state.counts[own] = 0
    state.near[own] = -1
    state.oldest[own] = 0
    _alone(own, state)
    return own


@compiled
def _alone(own: int, state: State) -> None:
    """Put a component that is in no identity into a new one, which has room: see `ogmc_state.with_room`."""
    if state.counters[FREE] > 0:
        state.counters[FREE] -= 1
        number = state.free[state.counters[FREE]]
    else:
        number = state.counters[IDENTITIES]
        state.counters[IDENTITIES] += 1
    state.identity[own] = number
    state.following[own] = own
    state.preceding[own] = own
    state.identity_sums[number] = state.sums[own]
    state.identity_counts[number] = state.counts[own]
    state.cohesions[number] = state.own_cohesions[own]
    state.sizes[number] = 1


@compiled
def _update(own: int, vector: NDArray[np.float32], state: State, scale: Scale) -> None:
    """Add a vector to a component and its identity."""
    number = state.identity[own]
    for column in range(len(vector)):
        state.sums[own, column] += vector[column]
        state.identity_sums[number, column] += vector[column]
    state.counts[own] += 1
    state.identity_counts[number] += 1
    square = dot(state.sums[own], state.sums[own])
    state.mean2[own] = square / state.counts[own] ** 2
    state.own_cohesions[own] = cohesion(square, state.counts[own], scale)
    _measure(number, state, scale)


@compiled
def _measure(number: int, state: State, scale: Scale) -> None:
    """Renew the cohesion of an identity."""
    total = state.identity_sums[number]
    state.cohesions[number] = cohesion(dot(total, total), state.identity_counts[number], scale)


@compiled
def _remember(own: int, nearest: Ints, state: State) -> None:
    """Store the candidates of a component, and the component with each of them."""
    width = state.near.shape[1]
    place = 0
    for other in nearest:
        if other == own or place == width:
            continue
        state.near[own, place] = other
        place += 1
        known = False
        for at in range(width):
            known = known or state.near[other, at] == own
        if not known:
            state.near[other, state.oldest[other] % width] = own
            state.oldest[other] += 1


@compiled
def reconsider(own: int, state: State, limits: Thresholds) -> None:
    """Let a component leave its identity if it fits worse than another, then link its identity to the nearest."""
    number, scale = state.identity[own], limits.scale
    if state.sizes[number] > 1:
        inside = _inside(own, state, scale)
        _, outside = _best(own, state.sums[own], state.counts[own], state.own_cohesions[own], state, scale)
        if inside < limits.leave or inside < outside:
            _leave(own, state, scale)
            number = state.identity[own]
    total, count, held = state.identity_sums[number], state.identity_counts[number], state.cohesions[number]
    other, value = _best(own, total, count, held, state, scale)
    if other >= 0 and value >= RATIO:
        _merge(own, other, state, scale)


@compiled
def _inside(own: int, state: State, scale: Scale) -> float:
    """Return the affinity of a component to the rest of its identity."""
    number, count = state.identity[own], state.counts[own]
    total, square = state.identity_sums[number], state.mean2[own] * count**2
    both = dot(state.sums[own], total)
    rest = state.identity_counts[number] - count
    held = cohesion(dot(total, total) - 2 * both + square, rest, scale)
    return affinity(both - square, count * rest, state.own_cohesions[own], held, scale)


@compiled
def _best(
    own: int, total: NDArray[np.float32], count: float, held: float, state: State, scale: Scale
) -> tuple[int, float]:
    """Return the component near `own` of the other identity with the highest affinity to a group, and the affinity."""
    best, highest = -1, -np.inf
    for other in state.near[own]:
        if other < 0 or state.counts[other] == 0 or state.identity[other] == state.identity[own]:
            continue
        number = state.identity[other]
        product = dot(total, state.identity_sums[number])
        value = affinity(product, count * state.identity_counts[number], held, state.cohesions[number], scale)
        if value > highest:
            best, highest = other, value
    return best, highest


@compiled
def _leave(own: int, state: State, scale: Scale) -> None:
    """Take a component out of its identity, of several components."""
    number, before, after = state.identity[own], state.preceding[own], state.following[own]
    state.following[before], state.preceding[after] = after, before
    state.identity_sums[number] -= state.sums[own]
    state.identity_counts[number] -= state.counts[own]
    state.sizes[number] -= 1
    _measure(number, state, scale)
    _alone(own, state)


@compiled
def _merge(a: int, b: int, state: State, scale: Scale) -> None:
    """Merge the identities of two components; the one of more components keeps its number."""
    if state.sizes[state.identity[a]] < state.sizes[state.identity[b]]:
        a, b = b, a
    into, gone = state.identity[a], state.identity[b]
    member = b
    for _ in range(state.sizes[gone]):
        state.identity[member] = into
        member = state.following[member]
    last_a, last_b = state.preceding[a], state.preceding[b]
    state.following[last_a], state.preceding[b] = b, last_a
    state.following[last_b], state.preceding[a] = a, last_b
    state.identity_sums[into] += state.identity_sums[gone]
    state.identity_counts[into] += state.identity_counts[gone]
    state.sizes[into] += state.sizes[gone]
    state.identity_counts[gone], state.sizes[gone] = 0, 0
    _measure(into, state, scale)
    state.free[state.counters[FREE]] = gone
    state.counters[FREE] += 1
