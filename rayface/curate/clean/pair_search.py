"""Exact search for pairs of embeddings above a cosine: blocked matrix products, on a CPU or a GPU.

The product of the leading principal components, with a Cauchy-Schwarz bound for the rest, excludes most pairs at a
fraction of the work. Products use bfloat16 if that is faster. Their rounding error is taken into account, and every
pair is decided in float64, so the result does not depend on the device.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rayface.arrays import Floats, Ints
from rayface.curate.clean.stacked_rows import StackedRows
from rayface.precision import full_float32

Matrix = Floats | StackedRows  # (rows, D) of any norm
Pairs = tuple[Ints, Ints, NDArray[np.float64]]  # left row, right row, cosine

# Upper bounds of the error of a product of unit vectors x and y of up to 4,096 components. With unit roundoff u,
# rounding both changes it by at most (2u + u^2) * sum |x_i y_i| <= 2u + u^2, the float32 sum by 4096 * 2^-24, and
# rounding the result, which is at most 1, by u / 2. In bfloat16 u is 2^-8: .0101 together; in float32 2^-24: .00025.
_ERRORS = {torch.float32: 2**-11, torch.bfloat16: 2**-6}
_BLOCKS = {"cpu": (1024, 4096)}  # rows and columns of a product
_GPU_BLOCK = (8192, 32_768)
_CHUNK = 4096  # rows that are normalised, or pairs that are decided, at a time
_LEAST_PAIRS = 2**30  # minimum number of pairs of a tile: seconds on a core
_MOST_TILES = 4096
_LEAST_LIMIT = 10_000_000  # pairs, 24 bytes each
_SAMPLE = 16_384  # rows for the principal components
_WIDTHS = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2)  # fractions of D, numbers of leading components to try
_UNIT = 32  # products are fast at widths that are multiples of it


def no_pairs() -> Pairs:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)


class Tile(NamedTuple):
    """A range of left rows against a range of right rows."""

    first: int
    last: int
    first_right: int
    last_right: int


def tiles(left: int, right: int | None, size: int, block_bytes: int) -> list[Tile]:
    """Cut all pairs of rows into tiles of about equal work, at most a few thousand.

    Args:
        left, right: number of rows; right None: left rows with each other, each pair once.
        size: length of a row, D.
        block_bytes: approximate bytes of a task's left rows in bfloat16.
    """
    held = max(1024, block_bytes // (2 * size))
    pairs = left * left // 2 if right is None else left * right
    across = max(_CHUNK, max(_LEAST_PAIRS, pairs // _MOST_TILES) // held)
    end = left if right is None else right
    return [
        Tile(first, min(first + held, left), start, min(start + across, end))
        for first in range(0, left, held)
        for start in range(first if right is None else 0, end, across)
    ]


@dataclass(frozen=True)
class Apart:
    """Filter of pairs: rows of different identities that are not known to be one person.

    Attributes:
        bounds: (I + 1,) where the rows of each identity begin.
        known: pairs of identities (a, b), a < b, as a * I + b, rising.
    """

    bounds: Ints
    known: Ints

    def __call__(self, left: Ints, right: Ints) -> NDArray[np.bool_]:
        a, b = (np.searchsorted(self.bounds, rows, side="right") - 1 for rows in (left, right))
        code = np.minimum(a, b) * (len(self.bounds) - 1) + np.maximum(a, b)
        place = np.searchsorted(self.known, code)
        is_known = np.zeros(len(code), bool)
        inside = place < len(self.known)
        is_known[inside] = self.known[place[inside]] == code[inside]
        return (a != b) & ~is_known

    def one_identity(self, first: int, last: int) -> bool:
        """Return whether all rows [first, last) are of one identity."""
        return bool(np.searchsorted(self.bounds, first, side="right") == np.searchsorted(self.bounds, last, "left"))


def known_pairs(duplicates: Pairs, count: int) -> Ints:
    """Return pairs of `count` identities, the lower first, as `Apart` takes them."""
    return np.sort(duplicates[0] * count + duplicates[1])


class PairSearch:
    """Search tiles for pairs of rows with a cosine above a threshold.

    Memory: a tile's left rows, twice, and blocks of a few tens of MB (a GPU: about 2 GB).

    Args:
        name: config key of the threshold, for errors.
        left, right: matrices of embeddings; right None: left with itself, the lower row first.
        threshold: minimum cosine.
        limit: maximum number of pairs in a tile.
        apart: filter of pairs; None: all count.
        axes: result of `leading_axes`.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        name: str,
        left: Matrix,
        right: Matrix | None,
        threshold: float,
        *,
        limit: int,
        apart: Apart | None = None,
        axes: NDArray[np.float32] | None = None,
        device: str = "cpu",
    ) -> None:
        self._name = name
        self._left, self._right, self._same = left, left if right is None else right, right is None
        self._threshold, self._limit, self._apart, self._axes, self._device = threshold, limit, apart, axes, device

    def __call__(self, tile: Tile) -> Pairs:
        """Return the pairs, by left row, then right row.

        Raises:
            ValueError: more pairs than the limit.
        """
        with full_float32(torch.device(self._device)):  # the bounds of the errors are of its sums
            return self._found(tile)

    def _found(self, tile: Tile) -> Pairs:
        num_rows, num_columns = _BLOCKS.get(self._device, _GPU_BLOCK)
        rows = _operand(self._left, tile.first, tile.last, self._axes, self._device)
        found, total = [], 0
        for start in range(tile.first_right, tile.last_right, num_columns):
            stop = min(start + num_columns, tile.last_right)
            columns = _operand(self._right, start, stop, self._axes, self._device)
            for first in range(tile.first, tile.last, num_rows):
                last = min(first + num_rows, tile.last)
                if self._skipped(first, last, start, stop):
                    continue
                near = _above(rows.part(first - tile.first, last - tile.first), columns, self._threshold)
                pairs = self._decided(near[0] + first, near[1] + start)
                found.append(pairs)
                total += len(pairs[0])
                if total > self._limit:
                    raise too_many(self._name, self._threshold, self._limit)
        return concatenated(found)

    def _skipped(self, first: int, last: int, start: int, stop: int) -> bool:
        if not self._same:
            return False
        if stop <= first + 1:
            return True
        return self._apart is not None and self._apart.one_identity(min(first, start), max(last, stop))

    def _decided(self, left: Ints, right: Ints) -> Pairs:
        """Return the pairs that count and are above the threshold."""
        if self._same:
            left, right = left[left < right], right[left < right]
        if self._apart is not None:
            counts = self._apart(left, right)
            left, right = left[counts], right[counts]
        cosines = np.zeros(len(left))
        for k in range(0, len(left), _CHUNK):
            some = slice(k, k + _CHUNK)
            cosines[some] = np.einsum("nd,nd->n", _units(self._left[left[some]]), _units(self._right[right[some]]))
        sure = cosines > self._threshold
        return left[sure], right[sure], cosines[sure]


def most_pairs(num_images: int) -> int:
    """Return the maximum number of pairs of a search: more fill the memory and indicate too low a threshold."""
    return max(_LEAST_LIMIT, num_images)


def too_many(name: str, threshold: float, limit: int) -> ValueError:
    return ValueError(f"{name} {threshold}: more than {limit:,} pairs are above this cosine; raise it")


def _units(values: Floats) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(min=1e-300)


class _Operand(NamedTuple):
    """Rows as factors of products.

    The product of two `lead` is an upper bound of that of the two `whole`: it consists of the leading components and
    the norms of the others (Cauchy-Schwarz).
    """

    whole: torch.Tensor  # (n, D)
    lead: torch.Tensor  # (n, W + 1); the whole where there are no axes

    def part(self, first: int, last: int) -> _Operand:
        return _Operand(self.whole[first:last], self.lead[first:last])


def _operand(matrix: Matrix, first: int, last: int, axes: NDArray[np.float32] | None, device: str) -> _Operand:
    dtype, count = product_dtype(device), last - first
    whole = torch.empty(count, matrix.shape[1], dtype=dtype, device=device)
    basis = None if axes is None else torch.from_numpy(axes).to(device)
    lead = whole if basis is None else torch.empty(count, basis.shape[1] + 1, dtype=dtype, device=device)
    for k in range(0, count, _CHUNK):
        some = slice(k, min(k + _CHUNK, count))
        values = torch.tensor(matrix[first + k : first + some.stop]).to(device).double()
        unit = (values / values.norm(dim=1, keepdim=True).clamp_min(1e-300)).float()
        whole[some] = unit.to(dtype)
        if basis is not None:
            leading = unit @ basis
            lead[some, :-1] = leading.to(dtype)
            # 1e-5: more than the squares' rounding error
            lead[some, -1] = (unit.square().sum(1) - leading.square().sum(1)).clamp_min(0).add(1e-5).sqrt().to(dtype)
    return _Operand(whole, lead)


def _above(rows: _Operand, columns: _Operand, threshold: float) -> tuple[Ints, Ints]:
    """Return candidate pairs, which include all pairs above the threshold."""
    least = threshold - _ERRORS[rows.whole.dtype]
    scores = rows.lead @ columns.lead.T
    near = (scores.amax(1).float() > least).nonzero().ravel()
    if len(near) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    scores = scores[near] if rows.lead is rows.whole else rows.whole[near] @ columns.whole.T
    hit, place = (scores.float() > least).nonzero(as_tuple=True)
    return near[hit].cpu().numpy(), place.cpu().numpy()


@functools.cache
def product_dtype(device: str) -> torch.dtype:
    """Return the type of products: bfloat16, on a CPU only if it is faster."""
    if device != "cpu":
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        factor = torch.ones(256, 512, dtype=dtype)
        laps = []
        for _ in range(4):
            start = time.perf_counter()
            factor @ factor.T
            laps.append(time.perf_counter() - start)
        return min(laps)

    return min((torch.float32, torch.bfloat16), key=seconds)


def leading_axes(left: Matrix, right: Matrix | None, threshold: float) -> NDArray[np.float32] | None:
    """Return the principal components (D, W) that exclude most pairs at the least work; None: use whole rows.

    Computed and tested on evenly spaced rows, so the result depends only on the matrices.
    """
    other = left if right is None else right
    size = left.shape[1]
    sample = _units(left[_spaced(len(left), _SAMPLE)]).astype(np.float32)
    _, vectors = np.linalg.eigh(sample.T.astype(np.float64) @ sample)
    axes = np.ascontiguousarray(vectors[:, ::-1], np.float32)
    a, b = sample[:: max(1, len(sample) // 1024)], _units(other[_spaced(len(other), 4096)]).astype(np.float32)
    cut = threshold - _ERRORS[torch.bfloat16]
    far = a @ b.T <= cut
    best, least = None, 1.0
    for width in sorted({int(share * size) // _UNIT * _UNIT - 1 for share in _WIDTHS} - {-1}):
        leads = [side @ axes[:, :width] for side in (a, b)]
        rests = [np.sqrt((1 - np.square(lead).sum(axis=1)).clip(min=0)) for lead in leads]
        passed = leads[0] @ leads[1].T + np.outer(*rests) > cut
        work = (width + 1) / size + float((passed & far).any(axis=1).mean())
        if work < least:
            best, least = width, work
    return None if best is None else np.ascontiguousarray(axes[:, :best])


def _spaced(count: int, most: int) -> Ints:
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)) if count else np.zeros(0, np.int64)


def concatenated(found: Iterable[Pairs]) -> Pairs:
    """Return the pairs of all tiles, by left row, then right row."""
    left, right, cosines = (np.concatenate(side) for side in zip(no_pairs(), *found, strict=True))
    order = np.lexsort((right, left))
    return left[order], right[order], cosines[order]
