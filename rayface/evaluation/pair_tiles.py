"""Cosines of all pairs of a labelled set, tile by tile, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

_CHUNK = 16_384  # rows per chunk of the check of the norms


class GenuinePairs(NamedTuple):
    """Scores of genuine pairs of a tile, and their rows and columns in it, (n,) each."""

    scores: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


@dataclass(kw_only=True)
class Tile:
    """Scores of images `first_row`... against images `first_column`...; -inf where the pair is not in the tile.

    Attributes:
        scores: (rows, columns); after `take_genuine`, of impostor pairs only.
        num_pairs: number of unordered pairs in the tile.
    """

    scores: torch.Tensor
    row_labels: NDArray[np.int64]
    column_labels: NDArray[np.int64]
    first_row: int
    first_column: int
    num_pairs: int

    def take_genuine(self) -> GenuinePairs:
        """Return the genuine pairs, and remove them from `scores`."""
        device = self.scores.device
        # Images are sorted by label: only tiles near the diagonal have genuine pairs.
        if self.row_labels[-1] < self.column_labels[0]:
            none = torch.empty(0, dtype=torch.int64, device=device)
            return GenuinePairs(self.scores.new_empty(0), none, none)
        rows, columns = (torch.from_numpy(labels).to(device) for labels in (self.row_labels, self.column_labels))
        same = (rows[:, None] == columns) & (self.scores > -torch.inf)
        found = GenuinePairs(self.scores[same], *same.nonzero(as_tuple=True))
        self.scores.masked_fill_(same, -torch.inf)
        return found


class PairTiles:
    """All unordered pairs of images, sorted by label; embeddings are read, and normalised, a tile at a time.

    Memory: a tile of scores, 80 bytes per image, and on an accelerator all embeddings.

    Attributes:
        num_genuine, num_impostor: number of pairs.
        order: (n,) rows of the embeddings, in the order of the tiles.
    """

    SHAPE = (8192, 2048)  # a tile of float32 scores: 64 MB

    def __init__(
        self,
        embeddings: NDArray[np.floating],
        labels: NDArray[np.int64],
        order: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self._embeddings, self._labels, self.order, self._device = embeddings, labels, order, device
        self._dtype = torch.float64 if embeddings.dtype == np.float64 else torch.float32
        self._inverse = torch.from_numpy(_inverse_norms(embeddings, order)).to(self._dtype)
        counts = np.unique(labels, return_counts=True)[1].tolist()
        self.num_genuine = sum(count * (count - 1) // 2 for count in counts)
        self.num_impostor = len(order) * (len(order) - 1) // 2 - self.num_genuine
        self._resident: torch.Tensor | None = None
        if device.type != "cpu":
            self._resident = torch.cat(
                [self._read(order[i : i + _CHUNK], slice(i, i + _CHUNK)) for i in range(0, len(order), _CHUNK)]
            )

    @classmethod
    def of(
        cls, embeddings: ArrayLike, labels: ArrayLike, *, rows: NDArray[np.int64] | None = None, device: str = "cpu"
    ) -> PairTiles:
        """Check the input.

        Args:
            embeddings: (N, D), raw or normalised.
            labels: (N,) identity of each image, of any sortable type.
            rows: rows to compare; None: all.
            device: device of the matrix products.

        Raises:
            ValueError: shapes do not fit, or an embedding is zero or not finite.
        """
        given, names = np.asanyarray(embeddings), np.asarray(labels)
        if given.ndim != 2 or names.shape != given.shape[:1]:
            raise ValueError(
                f"embeddings and labels have shapes {given.shape} and {names.shape}; they must be (N, D) and (N,)"
            )
        if rows is not None:
            names = names[rows]
        numbers = np.unique(names, return_inverse=True)[1].astype(np.int64)
        order = np.argsort(numbers, kind="stable")
        return cls(given, numbers[order], order if rows is None else rows[order], torch.device(device))

    @property
    def num_pairs(self) -> int:
        """Number of unordered pairs."""
        return self.num_genuine + self.num_impostor

    def tiles(self, shape: tuple[int, int] = SHAPE) -> Iterator[Tile]:
        """Yield tiles that hold every unordered pair once; the scores are overwritten by the next tile."""
        n = len(self.order)
        buffer = torch.empty(shape[0] * shape[1], dtype=self._dtype, device=self._device)
        for start in range(0, n, shape[0]):
            rows = self._units(start, min(n, start + shape[0]))
            for first in range(start, n, shape[1]):
                columns = self._units(first, min(n, first + shape[1]))
                scores = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
                torch.mm(rows, columns.T, out=scores)
                num_pairs = scores.numel()
                if first < start + len(rows):
                    place = torch.arange(len(rows), device=self._device)[:, None] + start
                    other = torch.arange(len(columns), device=self._device) + first
                    scores.masked_fill_(place >= other, -torch.inf)
                    num_pairs = int(
                        np.maximum(0, np.minimum(np.arange(first, first + len(columns)) - start, len(rows))).sum()
                    )
                yield Tile(
                    scores=scores,
                    row_labels=self._labels[start : start + len(rows)],
                    column_labels=self._labels[first : first + len(columns)],
                    first_row=start,
                    first_column=first,
                    num_pairs=num_pairs,
                )

    def sample(self, blocks: int, side: int, seed: int = 0) -> NDArray[np.floating]:
        """Return scores of impostor pairs of random images: `blocks` blocks of `side` by `side` images."""
        random = np.random.default_rng(seed)
        found = []
        for _ in range(blocks):
            a, b = (np.sort(random.integers(0, len(self.order), side)) for _ in range(2))
            scores = (self._gather(a) @ self._gather(b).T).cpu().numpy()
            found.append(scores[self._labels[a][:, None] != self._labels[b]])
        return np.concatenate(found)

    def sample_genuine(self, count: int, seed: int = 0) -> NDArray[np.floating]:
        """Return scores of `count` random genuine pairs, each pair equally likely; with repeats."""
        random = np.random.default_rng(seed)
        _, first, place, sizes = np.unique(self._labels, return_index=True, return_inverse=True, return_counts=True)
        others = sizes[place] - 1
        a = random.choice(len(self.order), count, p=others / others.sum())
        offset = (random.random(count) * others[a]).astype(np.int64)
        start = first[place[a]]
        b = start + (a - start + 1 + offset) % sizes[place[a]]
        scores = (self._gather(a) * self._gather(b)).sum(1)
        found: NDArray[np.floating] = scores.cpu().numpy()
        return found

    def _units(self, start: int, stop: int) -> torch.Tensor:
        if self._resident is not None:
            return self._resident[start:stop]
        return self._read(self.order[start:stop], slice(start, stop))

    def _gather(self, places: NDArray[np.int64]) -> torch.Tensor:
        if self._resident is not None:
            return self._resident[torch.from_numpy(places).to(self._device)]
        return self._read(self.order[places], torch.from_numpy(places))

    def _read(self, rows: NDArray[np.int64], places: slice | torch.Tensor) -> torch.Tensor:
        units = torch.from_numpy(self._embeddings[rows]).to(self._dtype)  # a copy
        return units.mul_(self._inverse[places][:, None]).to(self._device)


def _inverse_norms(embeddings: NDArray[np.floating], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 / length of the rows in `order`.

    Raises:
        ValueError: a row is zero or not finite.
    """
    norms = np.empty(len(order))
    for start in range(0, len(order), _CHUNK):
        rows = embeddings[order[start : start + _CHUNK]]
        norms[start : start + _CHUNK] = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        row = order[bad].min()
        raise ValueError(
            f"embedding {row} has length {norms[order == row][0]}, it must be finite and above 0; {bad.size} of "
            f"{len(order)} are not"
        )
    return 1 / norms
