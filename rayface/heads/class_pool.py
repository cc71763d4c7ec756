"""Class centers of the identities that were seen last: two rows a column, and which identity has which column."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rayface.heads.recent_columns import RecentColumns


@dataclass(frozen=True)
class Written:
    """What one write changed."""

    places: Tensor  # (m,) rows of the pool, both slots counted through
    overwritten: Tensor  # (m, D) what was there
    second: Tensor  # (k,) columns whose identity was known when it was last written


class ClassPool:
    """Two rows of each of Q columns for the identities written last; a write can be undone without a copy of the pool.

    Attributes:
        rows: (2, Q, D).
        columns: which identity has which column.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.columns = rows, RecentColumns(rows.shape[1])

    @property
    def _flat(self) -> Tensor:
        return self.rows.view(2 * self.rows.shape[1], -1)

    def write(self, embeddings: Tensor, identities: list[int]) -> Written:
        """Write embeddings (B, D) in order: of a new identity to slot 0, of a known one to each slot in turn."""
        newest: dict[int, int] = {}  # row of the pool -> row of the batch: the last one that goes there
        known: dict[int, bool] = {}
        for row, identity in enumerate(identities):
            use = self.columns.use(identity)
            newest[use.slot * self.rows.shape[1] + use.column] = row
            known[use.column] = use.known
        second = [column for column, was_known in known.items() if was_known]
        places, rows = torch.tensor([[*newest], [*newest.values()]], device=embeddings.device)
        overwritten = self._flat[places]
        self._flat[places] = embeddings[rows]
        return Written(places, overwritten, torch.tensor(second, dtype=torch.int64, device=embeddings.device))

    def keep(self) -> None:
        """Make the last write final."""
        self.columns.commit()

    def undo(self, written: Written) -> None:
        """Take the last write back."""
        self.columns.undo()
        self._flat[written.places] = written.overwritten

    def cosines(self, units: Tensor, written: Written) -> tuple[Tensor, Tensor]:
        """Return cosines (n, Q) to slot 0 of every column, and to slot 1 of the `second` columns of a write, else 0."""
        first = units @ self.rows[0].T
        return first, first.index_copy(1, written.second, units @ self.rows[1, written.second].T)
