"""Cosines of all pairs of a labelled set, tile by tile, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rayface.arrays import identities_of
from rayface.precision import fast_bf16, full_float32

_CHUNK = 16_384  # rows per chunk of the check of the norms, and pairs per chunk of exact cosines

# Bound of the error of a product of embeddings that are rounded to bfloat16 (unit roundoff u = 2^-8), before the result
# is rounded: rounding the embeddings changes it by at most (2u + u^2) * sum |x_i y_i| <= .00783; the sums of D products
# in float32, of these and of the exact cosine, by about D * 2^-23 each where hardware truncates, together below .00025
# for D up to 1,024. The rounding of the result is no part of it: see `_may_exceed`.
SCREEN_ERROR = 0.0081


class Pairs(NamedTuple):
    """Scores of pairs of a tile, and their rows and columns in it, (n,) each."""

    scores: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


@dataclass(kw_only=True)
class Tile:
    """Scores of images `first_row`... against images `first_column`...; -inf where the pair is not in the tile.

    Attributes:
        scores: (rows, columns); after `take_genuine`, of impostor pairs only.
        units: of a screened tile, the embeddings of its rows and columns, of length 1; its scores are numbers within
            `SCREEN_ERROR` of the cosines, rounded to bfloat16. None: the scores are the cosines.
        num_pairs: number of unordered pairs in the tile.
    """

    scores: torch.Tensor
    units: tuple[torch.Tensor, torch.Tensor] | None
    row_labels: NDArray[np.int64]
    column_labels: NDArray[np.int64]
    first_row: int
    first_column: int
    num_pairs: int

    def take_genuine(self) -> Pairs:
        """Return the genuine pairs, and remove them from the tile; a screened tile has none."""
        device = self.scores.device
        # Images are sorted by label: only tiles near the diagonal have genuine pairs.
        if self.row_labels[-1] < self.column_labels[0]:
            none = torch.empty(0, dtype=torch.int64, device=device)
            return Pairs(torch.empty(0, device=device), none, none)
        rows, columns = (torch.from_numpy(labels).to(device) for labels in (self.row_labels, self.column_labels))
        same = (rows[:, None] == columns) & (self.scores > -torch.inf)
        found = Pairs(self.scores[same], *same.nonzero(as_tuple=True))
        self.scores.masked_fill_(same, -torch.inf)
        return found

    def above(self, floor: float) -> torch.Tensor:
        """Return the cosines above a floor (n,), in full precision."""
        return self.scores[self.scores > floor] if self.units is None else self._exact(floor).scores

    def highest(self, count: int, floor: float) -> Pairs:
        """Return the pairs with the highest cosines above a floor, at most `count`, in any order."""
        if self.units is not None:
            found = self._exact(floor)
            best = torch.topk(found.scores, min(count, len(found.scores))).indices
            return Pairs(*(values[best] for values in found))
        rows = (self.scores.amax(1) > floor).nonzero().flatten()  # few, where the floor is high
        some = self.scores[rows]
        scores, places = torch.topk(some.flatten(), min(count, some.numel()))
        kept = scores > floor
        return Pairs(scores[kept], rows[places[kept] // some.shape[1]], places[kept] % some.shape[1])

    def _exact(self, floor: float) -> Pairs:
        """Compute those cosines of a screened tile again that may be above a floor; return the ones that are."""
        assert self.units is not None
        left, right = self.units
        near = _may_exceed(self.scores.amax(1), floor).nonzero().flatten()
        rows, columns = _may_exceed(self.scores[near], floor).nonzero(as_tuple=True)
        rows = near[rows]
        scores = left.new_empty(len(rows))
        for start in range(0, len(rows), _CHUNK):
            part = slice(start, start + _CHUNK)
            torch.sum(left[rows[part]] * right[columns[part]], 1, out=scores[part])
        kept = scores > floor
        return Pairs(scores[kept], rows[kept], columns[kept])


def _may_exceed(screened: torch.Tensor, floor: float) -> torch.Tensor:
    """Return whether cosines may be above a floor, by the scores of a screened tile.

    Rounding keeps the order: a number above floor - SCREEN_ERROR is, rounded, at least that limit, rounded.
    """
    limit = torch.tensor(floor - SCREEN_ERROR, dtype=torch.float64).bfloat16()
    return screened >= limit.item()


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
            resident = torch.empty(len(order), embeddings.shape[1], dtype=self._dtype, device=device)
            for start in range(0, len(order), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                resident[chunk] = self._read(order[chunk], chunk)
            self._resident = resident

    @classmethod
    def of(
        cls, embeddings: ArrayLike, labels: ArrayLike, *, rows: NDArray[np.int64] | None = None, device: str = "cpu"
    ) -> PairTiles:
        """Check the input.

        Args:
            embeddings: (N, D), raw or normalised.
            labels: (N,) identity of each image, numbers or strings.
            rows: rows to compare; None: all.
            device: device of the matrix products.

        Raises:
            ValueError: shapes do not fit, an embedding is zero or not finite, or a label is missing.
        """
        given, names = np.asanyarray(embeddings), identities_of(labels, "labels")[0]
        if given.ndim != 2 or names.shape != given.shape[:1]:
            raise ValueError(
                f"embeddings and labels have shapes {given.shape} and {names.shape}; they must be (N, D) and (N,)"
            )
        if given.dtype.kind not in "fiu" or given.dtype.itemsize > 8:
            raise ValueError(f"embeddings are {given.dtype}: must be float16, float32 or float64")
        if rows is not None:
            names = names[rows]
        numbers = np.unique(names, return_inverse=True)[1].astype(np.int64)
        order = np.argsort(numbers, kind="stable")
        return cls(given, numbers[order], order if rows is None else rows[order], torch.device(device))

    @property
    def num_pairs(self) -> int:
        """Number of unordered pairs."""
        return self.num_genuine + self.num_impostor

    @property
    def can_screen(self) -> bool:
        """Whether screened tiles are possible, and faster than others."""
        size = self._embeddings.shape[1]
        return self._dtype == torch.float32 and size <= 1024 and fast_bf16(self._device)

    def tiles(self, shape: tuple[int, int] = SHAPE, *, screened: bool = False) -> Iterator[Tile]:
        """Yield tiles that hold every unordered pair once; the scores are overwritten by the next tile.

        Args:
            shape: largest number of rows and columns.
            screened: yield screened tiles where there are no genuine pairs, if `can_screen`.
        """
        n = len(self.order)
        buffer = torch.empty(shape[0] * shape[1], dtype=self._dtype, device=self._device)
        rounded = torch.empty(len(buffer) if screened else 0, dtype=torch.bfloat16, device=self._device)
        for start in range(0, n, shape[0]):
            rows = self._units(start, min(n, start + shape[0]))
            rounded_rows = rows.bfloat16() if screened else rows
            for first in range(start, n, shape[1]):
                columns = self._units(first, min(n, first + shape[1]))
                row_labels = self._labels[start : start + len(rows)]
                column_labels = self._labels[first : first + len(columns)]
                is_screened = screened and bool(row_labels[-1] < column_labels[0])
                if is_screened:
                    scores = _products(rounded_rows, columns.bfloat16(), rounded)
                else:
                    scores = _products(rows, columns, buffer)
                yield Tile(
                    scores=scores,
                    units=(rows, columns) if is_screened else None,
                    row_labels=row_labels,
                    column_labels=column_labels,
                    first_row=start,
                    first_column=first,
                    num_pairs=_keep_upper(scores, start, first),
                )

    def sample(self, blocks: int, side: int, seed: int = 0) -> NDArray[np.floating]:
        """Return scores of impostor pairs of random images: `blocks` blocks of `side` by `side` images."""
        random = np.random.default_rng(seed)
        found = []
        for _ in range(blocks):
            a, b = (np.sort(random.integers(0, len(self.order), side)) for _ in range(2))
            with full_float32(self._device):
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
        values = self._embeddings[rows]  # a copy
        native = values.astype(values.dtype.newbyteorder("="), copy=False)
        units = torch.from_numpy(native).to(self._dtype)
        return units.mul_(self._inverse[places][:, None]).to(self._device)


def _products(rows: torch.Tensor, columns: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    scores = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
    with full_float32(rows.device):
        return torch.mm(rows, columns.T, out=scores)


def _keep_upper(scores: torch.Tensor, first_row: int, first_column: int) -> int:
    """Set the pairs of the diagonal and below it to -inf; return the number of the others."""
    num_rows, num_columns = scores.shape
    if first_column >= first_row + num_rows:
        return scores.numel()
    rows = torch.arange(num_rows, device=scores.device)[:, None] + first_row
    columns = torch.arange(num_columns, device=scores.device) + first_column
    scores.masked_fill_(rows >= columns, -torch.inf)
    return int((columns - first_row).clamp(0, num_rows).sum())


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
