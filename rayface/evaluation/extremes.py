"""The most surprising pairs of a stream of tiles: genuine ones with low and impostor ones with high scores."""

from __future__ import annotations

import torch

from rayface.evaluation.pair_tiles import GenuinePairs, Tile

Scored = tuple[float, int, int]  # score, and the two images by their place in the order of the tiles


class Extremes:
    """The `count` genuine pairs with the lowest scores, and impostor pairs with the highest, the worst first."""

    def __init__(self, count: int = 12) -> None:
        self._count = count
        self.clear()

    def clear(self) -> None:
        """Forget all pairs."""
        self.genuine: list[Scored] = []
        self.impostor: list[Scored] = []

    def add(self, tile: Tile, genuine: GenuinePairs) -> None:
        """Take the pairs of a tile, whose genuine pairs were removed from its scores."""
        if len(genuine.scores):
            lowest = torch.topk(genuine.scores, min(self._count, len(genuine.scores)), largest=False).indices
            columns = [genuine.scores[lowest], genuine.rows[lowest], genuine.columns[lowest]]
            self.genuine = sorted([*self.genuine, *_listed(tile, *columns)])[: self._count]
        bound = self.impostor[-1][0] if len(self.impostor) == self._count else -torch.inf
        rows = (tile.scores.amax(1) > bound).nonzero().flatten()  # few, once the bound is high
        if len(rows):
            some = tile.scores[rows]
            highest = torch.topk(some.flatten(), min(self._count, some.numel()))
            own = rows[highest.indices // some.shape[1]], highest.indices % some.shape[1]
            found = [each for each in _listed(tile, highest.values, *own) if each[0] > bound]
            self.impostor = sorted([*self.impostor, *found], reverse=True)[: self._count]


def _listed(tile: Tile, scores: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> list[Scored]:
    places = (rows + tile.first_row).tolist(), (columns + tile.first_column).tolist()
    return list(zip(scores.tolist(), *places, strict=True))
