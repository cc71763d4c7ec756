"""Compiled core of online clustering: one vector at a time, against a bounded number of candidates; see `ogmc`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayface.arrays import Ints
from rayface.compiled import compiled

COMPONENTS, IDENTITIES, FREE, CURSOR = range(4)  # places in State.counters


class State(NamedTuple):
    """C components, of which each identity has a ring, and I identities; capacities may be larger.

    A component is a spherical Gaussian: its mean is sums / counts, its variance 1 - |mean|^2, because all vectors have
    length 1. A component with a count of 0 was deleted.
    """

    sums: NDArray[np.float32]  # (C, D) sum of the component's vectors
    counts: NDArray[np.float64]  # (C,)
    mean2: NDArray[np.float64]  # (C,) squared length of the mean
    identity: Ints  # (C,) identity of the component
    following: Ints  # (C,) next component of its identity
    preceding: Ints  # (C,)
    near: Ints  # (C, K) components seen near it, -1: none
    oldest: Ints  # (C,) number of replacements in `near`
    identity_sums: NDArray[np.float32]  # (I, D)
    identity_counts: NDArray[np.float64]  # (I,)
    sizes: Ints  # (I,) components of the identity
    free: Ints  # (I,) identity numbers to use again, FREE of them
    counters: Ints  # (4,)


class Thresholds(NamedTuple):
    """Squared radius of a component, mean cosines to link and to leave, components revisited with each image."""

    radius2: float
    link: float
    leave: float
    revisits: int


@compiled
def dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    total = np.float32(0)
    for column in range(a.shape[0]):
        total += a[column] * b[column]
    return total


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
        _update(own, vectors[row], state)
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
    """Put a component that is in no identity into a new one."""
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
    state.sizes[number] = 1


@compiled
def _update(own: int, vector: NDArray[np.float32], state: State) -> None:
    """Add a vector to a component and its identity."""
    number = state.identity[own]
    for column in range(len(vector)):
        state.sums[own, column] += vector[column]
        state.identity_sums[number, column] += vector[column]
    state.counts[own] += 1
    state.identity_counts[number] += 1
    state.mean2[own] = dot(state.sums[own], state.sums[own]) / state.counts[own] ** 2


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
    number = state.identity[own]
    count, rest = state.counts[own], state.identity_counts[number] - state.counts[own]
    if state.sizes[number] > 1:
        inside = (dot(state.sums[own], state.identity_sums[number]) - state.mean2[own] * count**2) / (count * rest)
        _, outside = _best_identity(own, state.sums[own], count, state)
        if inside < limits.leave or inside < outside:
            _leave(own, state)
            number = state.identity[own]
    other, cosine = _best_identity(own, state.identity_sums[number], state.identity_counts[number], state)
    if other >= 0 and cosine >= limits.link:
        _merge(own, other, state)


@compiled
def _best_identity(own: int, total: NDArray[np.float32], count: float, state: State) -> tuple[int, float]:
    """Return the component near `own` of the other identity with the highest mean cosine to a sum, and the cosine."""
    best, highest = -1, -2.0
    for other in state.near[own]:
        if other < 0 or state.counts[other] == 0 or state.identity[other] == state.identity[own]:
            continue
        number = state.identity[other]
        cosine = dot(total, state.identity_sums[number]) / (count * state.identity_counts[number])
        if cosine > highest:
            best, highest = other, cosine
    return best, highest


@compiled
def _leave(own: int, state: State) -> None:
    """Take a component out of its identity, of several components."""
    number, before, after = state.identity[own], state.preceding[own], state.following[own]
    state.following[before], state.preceding[after] = after, before
    state.identity_sums[number] -= state.sums[own]
    state.identity_counts[number] -= state.counts[own]
    state.sizes[number] -= 1
    _alone(own, state)


@compiled
def _merge(a: int, b: int, state: State) -> None:
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
    state.free[state.counters[FREE]] = gone
    state.counters[FREE] += 1
