"""Settings and arrays of online clustering, with room for more or only those in use; see `ogmc_kernel.State`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayface.curate.ogmc_kernel import COMPONENTS, IDENTITIES, State

NEIGHBOURS = 16


@dataclass(frozen=True, kw_only=True)
class OgmcSettings:
    """Arguments of OnlineGaussianMixture."""

    radius: float
    link: float
    base: float
    slack: float
    prior: float
    revisits: int
    min_images: int

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 2:
            raise ValueError(f"radius {self.radius}: must be above 0 and at most 2, a distance of unit vectors")
        if not -1 <= self.base < self.link <= 1:
            raise ValueError(f"base {self.base}, link {self.link}: must be cosines, link above base")
        if not 0 <= self.slack < 1 or not self.prior > 0:
            raise ValueError(f"slack {self.slack}, prior {self.prior}: must be in [0, 1) and above 0")
        if self.revisits < 0 or self.min_images < 1:
            raise ValueError(f"revisits {self.revisits}, min_images {self.min_images}: must be at least 0 and 1")


_PER_IDENTITY = ("identity_sums", "identity_counts", "cohesions", "sizes", "free")


def empty_state(size: int) -> State:
    whole = np.empty(0, np.int64)
    return State(
        sums=np.empty((0, size), np.float32),
        counts=np.empty(0),
        mean2=np.empty(0),
        own_cohesions=np.empty(0),
        identity=whole,
        following=whole,
        preceding=whole,
        near=np.empty((0, NEIGHBOURS), np.int64),
        oldest=whole,
        identity_sums=np.empty((0, size), np.float32),
        identity_counts=np.empty(0),
        cohesions=np.empty(0),
        sizes=whole,
        free=whole,
        counters=np.zeros(4, np.int64),
    )


def with_room(state: State, count: int) -> State:
    """Return the state with room for `count` more components, and for as many identities as components.

    There are never more identities than components: a new number is taken only while none is free, so every other
    identity then has a component, and so has the new one.
    """
    rows = int(state.counters[COMPONENTS]) + count
    grown = {name: enlarged(values, rows) for name, values in state._asdict().items() if name != "counters"}
    return State(**grown, counters=state.counters)


def enlarged(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Return an array with at least `count` rows: itself, or a copy with twice the room; new rows are zero."""
    if len(values) >= count:
        return values
    found = np.zeros((2 * count, *values.shape[1:]), values.dtype)
    found[: len(values)] = values
    return found


def in_use(state: State) -> dict[str, NDArray[Any]]:
    """Return the arrays of the state by name, without the room for more."""
    return {name: getattr(state, name)[:rows] for name, rows in _rows_in_use(state).items()} | {
        "counters": state.counters
    }


def restored_state(arrays: Mapping[str, NDArray[Any]]) -> State:
    """Return the state whose arrays are those of `in_use`.

    Raises:
        ValueError: an array has not as many rows as the counters say: compiled code would read beyond its end.
    """
    state = State(**{name: arrays[name] for name in State._fields})
    for name, rows in _rows_in_use(state).items():
        if len(arrays[name]) != rows:
            raise ValueError(f"{name}: has {len(arrays[name])} rows: must be {rows}")
    return state


def _rows_in_use(state: State) -> dict[str, int]:
    components, identities = (int(state.counters[place]) for place in (COMPONENTS, IDENTITIES))
    names = [name for name in State._fields if name != "counters"]
    return {name: identities if name in _PER_IDENTITY else components for name in names}
