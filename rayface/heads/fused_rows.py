"""Triton kernels over rows of class centers, for GPUs: each reads a row once and writes it once.

The counterpart of `row_kernels`, with its arithmetic and its rounding.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from rayface.heads.class_centers import NOISE_SIZE, SHORTEST
from rayface.heads.row_passes import RowSgd

_SHORTEST, _NOISE_SIZE = tl.constexpr(SHORTEST), tl.constexpr(NOISE_SIZE)
ROWS = 4  # of a program


@dataclass(frozen=True, kw_only=True)
class RowTile:
    """What the kernels are compiled for."""

    width: int
    """Numbers of a row, D."""
    padded: int
    """D rounded up to a power of two."""
    rows: int = ROWS
    momentum: float = 0.0
    weight_decay: float = 0.0


@triton.jit
def rounded(values: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """fp32 values rounded to the nearest of the type `kind`, ties to even; the interpreter's casts truncate."""
    if kind == tl.bfloat16:
        bits = values.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        values = tl.where(values == values, bits.to(tl.float32, bitcast=True), values)
    return values


@triton.jit
def _places_of(rows: tl.tensor, first: tl.tensor, count: tl.tensor, tile: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Of a program's rows: their local numbers (n,), places in a matrix of all rows and of the block (n, padded)."""
    k, columns = tl.program_id(0) * tile.rows + tl.arange(0, tile.rows), tl.arange(0, tile.padded)
    inside = (k < count)[:, None] & (columns < tile.width)[None, :]
    row = (first + k).to(tl.int64) if rows is None else tl.load(rows + k, mask=k < count, other=0)
    return row, row[:, None] * tile.width + columns[None, :], k[:, None] * tile.width + columns[None, :], inside


@triton.jit
def _inverse_norms(values: tl.tensor) -> tl.tensor:
    norms = tl.sqrt(tl.sum(values * values, 1))
    return tl.where(norms < _SHORTEST, 0.0, 1.0 / tl.maximum(norms, _SHORTEST))


@triton.jit(do_not_specialize=["first", "count"])
def _unit_rows(
    values: tl.tensor, rows: tl.tensor, out: tl.tensor, first: tl.tensor, count: tl.tensor, tile: tl.constexpr
) -> None:
    _, place, own, inside = _places_of(rows, first, count, tile)
    read = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
    unit = rounded(read * _inverse_norms(read)[:, None], out.dtype.element_ty)
    tl.store(out + own, unit.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _stored(values: tl.tensor, noise: tl.tensor, start: tl.tensor, inside: tl.tensor, tile: tl.constexpr) -> tl.tensor:
    """fp32 values as they are stored: with the noise of rows that start at `start` in it, rounded to bf16."""
    if noise is not None:
        begin = start % _NOISE_SIZE
        lower = tl.load(noise + begin[:, None] + tl.arange(0, tile.padded)[None, :], mask=inside, other=0)
        values = ((values.to(tl.int32, bitcast=True) + lower) & -65536).to(tl.float32, bitcast=True)
    return values


@triton.jit(do_not_specialize=["velocity_start", "values_start", "first", "count"])
def _sgd_rows(
    values: tl.tensor,
    velocity: tl.tensor,
    rows: tl.tensor,
    gradient: tl.tensor,
    noise: tl.tensor,
    velocity_start: tl.tensor,
    values_start: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    lr: tl.tensor,
    tile: tl.constexpr,
) -> None:
    row, place, own, inside = _places_of(rows, first, count, tile)
    weight = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
    pushed = tl.load(gradient + own, mask=inside, other=0.0)
    inverse, radial = _inverse_norms(weight), tl.sum(weight * pushed, 1)
    pull = tile.weight_decay - radial * inverse * inverse * inverse
    step = pushed * inverse[:, None] + weight * pull[:, None]
    if velocity is not None:
        step += tile.momentum * tl.load(velocity + place, mask=inside, other=0.0).to(tl.float32)
        step = _stored(step, noise, velocity_start + row * tile.width, inside, tile)
        tl.store(velocity + place, step.to(velocity.dtype.element_ty), mask=inside)
    weight = _stored(weight - lr * step, noise, values_start + row * tile.width, inside, tile)
    tl.store(values + place, weight.to(values.dtype.element_ty), mask=inside)


class FusedRowPasses:
    """`row_kernels.RowPasses` on tensors in a GPU's memory."""

    def unit_rows(self, values: Tensor, rows: Tensor | slice, out: Tensor) -> None:
        """Write rows of length 1, fp32 or bf16; see `RowPasses.unit_rows`."""
        where, first = _places(rows)
        tile = RowTile(width=values.shape[1], padded=padded_width(values.shape[1]))
        if len(out):
            with torch.cuda.device_of(out):  # Triton launches on the current device
                _unit_rows[_grid(len(out))](values, where, out, first, len(out), tile)

    def sgd_rows(
        self, values: Tensor, velocity: Tensor | None, rows: Tensor | slice, gradient: Tensor, sgd: RowSgd
    ) -> None:
        """Update rows and their momentum, fp32 or bf16; see `RowPasses.sgd_rows`."""
        where, first = _places(rows)
        pool, starts = (None, (0, 0)) if sgd.noise is None else (sgd.noise[0], sgd.noise[1:])
        width, count = values.shape[1], len(gradient)
        tile = RowTile(width=width, padded=padded_width(width), momentum=sgd.momentum, weight_decay=sgd.weight_decay)
        if count:
            with torch.cuda.device_of(values):
                _sgd_rows[_grid(count)](values, velocity, where, gradient, pool, *starts, first, count, sgd.lr, tile)


def padded_width(width: int) -> int:
    """Return the width of a tile: the next power of two, and at least what a product of tiles needs."""
    return max(16, 1 << (width - 1).bit_length())


def _grid(count: int) -> tuple[int]:
    return (-(-count // ROWS),)


def _places(rows: Tensor | slice) -> tuple[Tensor | None, int]:
    return (None, rows.start) if isinstance(rows, slice) else (rows.contiguous(), 0)
