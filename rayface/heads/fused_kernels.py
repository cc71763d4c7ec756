"""Triton kernels of the margin softmax: logits live in registers, tile by tile, and are never written to memory.

Both kernels hold one operand and stream the other past it. Sums are fp32 and in a fixed order, without atomics, so that
equal input gives equal bits. Only a row tile's own program writes its results.

Operands of both:
    scaled: (batch, width) unit embeddings times the scale.
    units: (rows, width) unit rows of a chunk, of the same type.
    target_places: (batch,) int32 place of the sample's own class, below 0 where another rank has it.
    first: place of the chunk's first row.
"""

from dataclasses import dataclass

import triton
import triton.language as tl

from rayface.heads.fused_rows import rounded


@dataclass(frozen=True, kw_only=True)
class SoftmaxTile:
    """What the kernels are compiled for."""

    width: int
    """Numbers of a row, D."""
    padded: int
    """D rounded up to a power of two."""
    samples: int
    """Embeddings of a tile, a power of two."""
    classes: int
    """Unit rows of a tile, a power of two."""
    conflict: float | None
    """Logit above which another class counts as 0 and gets no gradient; None: no filter."""
    fixed: bool
    """The exponents are relative to a constant, else to the running maximum of the logits."""
    emulated: bool
    """Triton's interpreter runs the kernel: it knows neither products nor rounding of bf16."""


@triton.jit
def _load_rows(source: tl.tensor, rows: tl.tensor, count: tl.tensor, tile: tl.constexpr) -> tl.tensor:
    """(n, padded) rows of a matrix (count, width), zeros outside it."""
    columns = tl.arange(0, tile.padded)
    inside = (rows < count)[:, None] & (columns < tile.width)[None, :]
    values = tl.load(source + rows[:, None] * tile.width + columns[None, :], mask=inside, other=0.0)
    return values.to(tl.float32) if tile.emulated else values


@triton.jit
def _factor(values: tl.tensor, like: tl.tensor, tile: tl.constexpr) -> tl.tensor:
    """fp32 values as a factor of a product, rounded to the type of its other factor."""
    return rounded(values, like.dtype.element_ty) if tile.emulated else values.to(like.dtype.element_ty)


@triton.jit
def _raise_top(top: tl.tensor, logits: tl.tensor, tile: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """What the exponents are relative to from now on, and the factor of earlier sums."""
    higher = top if tile.fixed else tl.maximum(top, tl.max(logits, 1))
    return higher, tl.exp(top - higher)


@triton.jit(do_not_specialize=["batch", "rows", "first", "strip_tiles"])
def softmax_sums(
    scaled: tl.tensor,
    units: tl.tensor,
    target_places: tl.tensor,
    tops: tl.tensor,
    sums: tl.tensor,
    weighted: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    first: tl.tensor,
    strip_tiles: tl.tensor,
    tile: tl.constexpr,
) -> None:
    """Add a chunk of unit rows to the partial sums of a tile of samples and a strip of `strip_tiles` class tiles.

    Args:
        tops, sums: (strips, batch) fp32 what the exponents are relative to, and the sums of exp(logit - top).
        weighted: (strips, batch, width) fp32 of exp(logit - top) times the unit row; None: not wanted.
    """
    i, columns = tl.program_id(0) * tile.samples + tl.arange(0, tile.samples), tl.arange(0, tile.padded)
    own, there = tl.program_id(1) * batch + i, i < batch
    place = own[:, None] * tile.width + columns[None, :]
    inside = there[:, None] & (columns < tile.width)[None, :]
    target = tl.load(target_places + i, mask=there, other=-1)
    top, total = tl.load(tops + own, mask=there, other=0.0), tl.load(sums + own, mask=there, other=0.0)
    embeddings = _load_rows(scaled, i, batch, tile)
    weighted_sum = None if weighted is None else tl.load(weighted + place, mask=inside, other=0.0)
    begin = tl.program_id(1) * strip_tiles * tile.classes
    for start in range(begin, tl.minimum(begin + strip_tiles * tile.classes, rows), tile.classes):
        j = start + tl.arange(0, tile.classes)
        unit = _load_rows(units, j, rows, tile)
        logits = tl.dot(embeddings, tl.trans(unit), input_precision="ieee")
        absent = ((first + j)[None, :] == target[:, None]) | (j >= rows)[None, :]
        logits = tl.where(absent, -float("inf"), logits)
        if tile.conflict is not None:
            conflicts = logits > tile.conflict
            logits = tl.where(conflicts, 0.0, logits)
        top, rescale = _raise_top(top, logits, tile)
        exponentials = tl.exp(logits - top[:, None])
        total = (total if tile.fixed else total * rescale) + tl.sum(exponentials, 1)
        if weighted is not None:
            if tile.conflict is not None:
                exponentials = tl.where(conflicts, 0.0, exponentials)
            earlier = weighted_sum if tile.fixed else weighted_sum * rescale[:, None]
            weighted_sum = tl.dot(_factor(exponentials, units, tile), unit, earlier, input_precision="ieee")
    tl.store(sums + own, total, mask=there)
    if not tile.fixed:
        tl.store(tops + own, top, mask=there)
    if weighted is not None:
        tl.store(weighted + place, weighted_sum, mask=inside)


@triton.jit(do_not_specialize=["batch", "rows", "first"])
def center_gradient(
    scaled: tl.tensor,
    units: tl.tensor,
    target_places: tl.tensor,
    factors: tl.tensor,
    out: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    first: tl.tensor,
    tile: tl.constexpr,
) -> None:
    """Write the gradient by a tile of unit rows, (rows, width) fp32, from recomputed logits.

    Args:
        factors: (3, batch) fp32: what the exponents are relative to, and the gradient's factors of exp(logit - top)
            and of the target, both over the scale.
    """
    classes: tl.constexpr = tile.classes
    padded: tl.constexpr = tile.padded
    j = tl.program_id(0) * classes + tl.arange(0, classes)
    columns = tl.arange(0, padded)
    unit = _load_rows(units, j, rows, tile)
    gradient = tl.zeros((classes, padded), tl.float32)
    for start in range(0, batch, tile.samples):
        i = start + tl.arange(0, tile.samples)
        there = i < batch
        embeddings = _load_rows(scaled, i, batch, tile)
        logits = tl.dot(unit, tl.trans(embeddings), input_precision="ieee")
        top = tl.load(factors + i, mask=there, other=0.0)
        weight = tl.load(factors + batch + i, mask=there, other=0.0)
        slope = tl.exp(logits - top[None, :]) * weight[None, :]
        if tile.conflict is not None:
            slope = tl.where(logits > tile.conflict, 0.0, slope)
        target = tl.load(target_places + i, mask=there, other=-1)
        target_weight = tl.load(factors + 2 * batch + i, mask=there, other=0.0)
        slope = tl.where((first + j)[:, None] == target[None, :], target_weight[None, :], slope)
        gradient = tl.dot(_factor(slope, units, tile), embeddings, gradient, input_precision="ieee")
    inside = (j < rows)[:, None] & (columns < tile.width)[None, :]
    tl.store(out + j[:, None] * tile.width + columns[None, :], gradient, mask=inside)
