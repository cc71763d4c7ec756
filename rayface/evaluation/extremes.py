"""The most surprising pairs of a stream of tiles: genuine ones with low and impostor ones with high scores."""

from __future__ import annotations

import torch

from rayface.evaluation.pair_tiles import Pairs, Tile

Scored = tuple[float, int, int]  # score, and the two images by their place in the order of the tiles


class Extremes:
    """The `count` genuine pairs with the lowest scores, and impostor pairs with the highest, the worst first."""

    def __init__(self, count: int = 12) -> None:
        self.count = count
        self.clear()

    def clear(self) -> None:
        """Forget all pairs."""
        self.genuine: list[Scored] = []
        self.impostor: list[Scored] = []

    def add(self, tile: Tile, genuine: Pairs, floor: float = -torch.inf) -> None:
        """Take the pairs of a tile, whose genuine pairs were removed from it; impostors only above a floor."""
        if len(genuine.scores):
            lowest = torch.topk(genuine.scores, min(self.count, len(genuine.scores)), largest=False).indices
            found = _listed(tile, Pairs(*(values[lowest] for values in genuine)))
            self.genuine = sorted([*self.genuine, *found])[: self.count]
        bound = self.impostor[-1][0] if len(self.impostor) == self.count else -torch.inf
        found = _listed(tile, tile.highest(self.count, max(bound, floor)))
        self.impostor = sorted([*self.impostor, *found], reverse=True)[: self.count]


def _listed(tile: Tile, pairs: Pairs) -> list[Scored]:
    places = (pairs.rows + tile.first_row).tolist(), (pairs.columns + tile.first_column).tolist()
    return list(zip(pairs.scores.tolist(), *places, strict=True))
