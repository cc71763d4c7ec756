"""Least-recently-used map from identities to columns, with an undo."""

from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

FREE = -1
COLUMN_BYTES = 150  # 32 in the arrays, the rest in the map; as measured


@dataclass(frozen=True)
class Use:
    """Where an identity is written."""

    column: int
    slot: int
    """0 or 1, in turn; 0 for an identity that was not in the map."""
    known: bool
    """Whether the identity was in the map."""


class RecentColumns:
    """Map of at most Q identities to Q columns; a new identity takes a free or the least recently used column.

    The columns form a doubly linked ring, least recently used first, so that a use and its undo take O(1). The links
    are in arrays that tensors share.
    Memory: COLUMN_BYTES a column, on the host.
    """

    def __init__(self, num_columns: int) -> None:
        self._end = num_columns  # a place in the ring between the most and the least recently used
        self._next = array("q", [*range(1, num_columns + 1), 0])
        self._previous = array("q", [num_columns, *range(num_columns)])
        self._identity = array("q", [FREE]) * num_columns
        self._turn = array("q", [0]) * num_columns
        self._columns: dict[int, int] = {}
        self._undo: list[tuple[int, int, int, int]] = []

    def column_of(self, identity: int) -> int:
        """Return the column of an identity, -1 if it has none."""
        return self._columns.get(identity, -1)

    def use(self, identity: int) -> Use:
        """Write an identity once: it becomes the most recently used, and its slots take turns."""
        column = self._columns.get(identity)
        known = column is not None
        if column is None:
            column = self._next[self._end]
        before = self._identity[column]
        slot = self._turn[column] if known else 0
        self._undo.append((column, self._previous[column], before, self._turn[column]))
        if not known:
            self._rename(column, identity)
        self._turn[column] = 1 - slot
        self._move(column, self._previous[self._end])
        return Use(column, slot, known)

    def undo(self) -> None:
        """Return to the state of the last `commit`."""
        while self._undo:
            column, previous, identity, turn = self._undo.pop()
            self._move(column, previous)
            self._turn[column] = turn
            if self._identity[column] != identity:
                self._rename(column, identity)

    def commit(self) -> None:
        """Keep what was used since the last call."""
        self._undo.clear()

    def _rename(self, column: int, identity: int) -> None:
        self._columns.pop(self._identity[column], None)
        self._identity[column] = identity
        if identity != FREE:
            self._columns[identity] = column

    def _move(self, column: int, previous: int) -> None:
        """Move a column behind another one; behind itself or where it is, nothing changes."""
        if previous in (column, self._previous[column]):
            return
        ring, back = self._next, self._previous
        ring[back[column]], back[ring[column]] = ring[column], back[column]
        after = ring[previous]
        ring[previous], back[column], ring[column], back[after] = column, previous, after, column

    def tensors(self) -> dict[str, Tensor]:
        """Return live int64 tensors that determine the state: links (Q + 1,), identities (Q,) and turns (Q,)."""
        arrays = {"next": self._next, "identities": self._identity, "turns": self._turn}
        return {name: torch.frombuffer(values, dtype=torch.int64) for name, values in arrays.items()}

    def refresh(self) -> None:
        """Rebuild what `tensors` does not hold, after these were filled."""
        self._undo.clear()
        for place, after in enumerate(self._next):
            self._previous[after] = place
        self._columns = {identity: column for column, identity in enumerate(self._identity) if identity != FREE}
