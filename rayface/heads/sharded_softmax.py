"""Margin softmax over one rank's rows in chunks: the rank's part of the sums, and the gradients.

With unit rows u_j, unit embeddings e_i and X_ji = exp(z_ji - base) for the classes other than the target, one pass over
the chunks gives sums_i = sum_j X_ji and weighted_centers_i = sum_j X_ji u_j. The softmax's denominator scales whole
columns, so both gradients follow later without another pass over X: the embeddings' from weighted_centers, the centers'
as X @ (weight * e). X is kept, or recomputed chunk by chunk.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rayface.heads.class_centers import Block, ClassCenters, Workspace
from rayface.heads.margins import Margin
from rayface.heads.prefetch import FetchedRows

# Size of a chunk: bytes of a matrix that fit the caches of a CPU, rows that fill a GPU.
CPU_CHUNK_BYTES, GPU_CHUNK_ROWS = 4 * 2**20, 16384
SLABS = 64  # parts of a chunk that are summed separately


def exponent_base(margin: Margin, num_classes: int, dtype: torch.dtype) -> float | None:
    """Return a constant to use in place of the row maximum in the softmax, or None where no constant is safe.

    Logits to other classes lie in [s lo, s hi]. With H = s hi + ln(C), the sum of C terms exp(z - base) stays finite if
    H - base < ln(max), and no pending is lost to underflow if s lo - base > ln(tiny). Both can hold if
    H - s lo < ln(max) - ln(tiny) = 176 in fp32: for s = 64 up to C = e^46. The target's own logit never enters the sum:
    it is added as log(1 + exp(...)), exact for any value.
    """
    low, high = (margin.scale * edge for edge in margin.range())
    high += math.log(num_classes + 1)
    info = torch.finfo(dtype)
    # One unit to spare on each side: rounded logits may leave [s lo, s hi] a little. bf16 products round both factors
    # and the logit by up to 2^-9 each, so by less than 2^-7 s in all, and s is at most 88 where this bound is used.
    largest, smallest = math.log(info.max) - 1, math.log(info.tiny) + 1
    if high - low > largest - smallest:
        return None
    return max(0.0, high - largest)


@dataclass
class PendingGradient:
    """The centers' gradient of one loss until the next step: kept in factors, never as a matrix."""

    unit: Tensor  # (B, D) unit embeddings of the global batch, math type
    scaled: Tensor  # (B, D) times the scale, type of the products
    rows: Tensor | None  # (n,) sorted local rows in use; None: all
    num_rows: int
    positions: Tensor  # (P,) where in rows the targets lie, ascending
    samples: Tensor  # (P,) whose targets they are
    step: int  # of the head when the loss was computed
    fetched: FetchedRows | None = None  # the same rows with their centers, if they were prefetched
    base: Tensor | float | None = None  # of the exponents; None: the maximum of the logits
    sample_stats: Tensor | None = None  # as the margin's `sample_stats` returned it
    kept: Tensor | None = None  # (k, B) exponentials of the first k rows
    weight: Tensor | None = None  # (B,) d loss / d X, times the scale
    target_weight: Tensor | None = None  # (P,) d loss / d target cosine
    factor: Tensor | None = None  # gradient that arrived at the loss

    @cached_property
    def places(self) -> list[int]:
        """The positions, on the host."""
        return self.positions.tolist()

    @cached_property
    def target_places(self) -> Tensor:
        """Where in rows each sample's target lies, (B,) int32; -1 on other ranks than its own."""
        places = torch.full((len(self.unit),), -1, dtype=torch.int32, device=self.unit.device)
        places[self.samples] = self.positions.int()
        return places

    def targets(self, lo: int, hi: int) -> tuple[int, int]:
        """Return the span of positions within places lo..hi-1."""
        return bisect_left(self.places, lo), bisect_left(self.places, hi)

    def spans(self, edges: list[int], used: Tensor | None) -> list[int]:
        """Return the places in rows of block edges, which count places in used, or local rows where that is None."""
        if self.rows is None:
            return edges
        if used is None:
            bounds = torch.tensor(edges, device=self.rows.device)
        else:
            ends = used[-1:] + 1
            bounds = torch.cat([used, ends])[torch.tensor(edges, device=used.device)]
        return torch.searchsorted(self.rows, bounds).tolist()

    def places_in(self, block: Block, lo: int, hi: int) -> Tensor:
        """Return where in a block the rows at places lo..hi-1 lie, (hi - lo,)."""
        rows = torch.arange(lo, hi, device=self.unit.device) if self.rows is None else self.rows[lo:hi]
        return rows - block.start if isinstance(block, slice) else torch.searchsorted(block, rows)

    def keeps(self, hi: int) -> bool:
        """Return whether the exponentials up to place hi are in memory."""
        return self.kept is not None and hi <= self.kept.shape[0]

    def block(self, lo: int, hi: int) -> Block:
        """Return the local rows of places lo..hi-1."""
        return slice(lo, hi) if self.rows is None else self.rows[lo:hi]

    def fetched_rows(self, lo: int, hi: int) -> Tensor | None:
        """Return the centers of places lo..hi-1 in the storage type if they were prefetched."""
        there = None if self.fetched is None else self.fetched.centers
        return None if there is None else there[lo:hi]


class ShardSoftmax:
    """Computes logits, sums and gradients over one rank's rows.

    Memory: `logit_memory` bytes for exponentials, and chunks of chunk_rows rows.
    """

    def __init__(self, centers: ClassCenters, margin: Margin, *, product_dtype: torch.dtype, logit_memory: int) -> None:
        self.centers, self.margin = centers, margin
        self.product_dtype, self.logit_memory = product_dtype, logit_memory
        self.workspace = Workspace(centers.device)
        self._spare: Tensor | None = None

    def chunk_rows(self, batch: int) -> int:
        """Return the rows of a chunk: what fits the caches of a CPU, or fills a GPU."""
        longest = max(batch, self.centers.values.shape[1])
        on_cpu, fitting = self.centers.device.type == "cpu", CPU_CHUNK_BYTES // (longest * self.product_dtype.itemsize)
        affordable = self.logit_memory // (2 * batch * self.centers.math_dtype.itemsize)
        return max(1, min(fitting if on_cpu else GPU_CHUNK_ROWS, affordable))

    def keep_buffer(self, num_rows: int, batch: int) -> Tensor:
        """Return memory for the exponentials of as many rows as `logit_memory` allows, in whole chunks."""
        chunk = self.chunk_rows(batch)
        affordable = self.logit_memory // (batch * self.product_dtype.itemsize) - chunk
        kept = num_rows if num_rows <= affordable else max(0, affordable) // chunk * chunk
        if self._spare is not None and self._spare.numel() >= kept * batch:
            spare, self._spare = self._spare, None
        else:
            self._spare = None
            spare = torch.empty(kept * batch, dtype=self.product_dtype, device=self.centers.device)
        return spare[: kept * batch].view(kept, batch)

    def release(self, pending: PendingGradient) -> None:
        """Reuse the memory of a pending gradient for the next one."""
        if pending.kept is not None and pending.kept.numel():
            self._spare = pending.kept.view(-1)
        pending.kept = pending.fetched = None

    def accumulate(
        self, pending: PendingGradient, want_weighted_centers: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Pass over the chunks once, before the denominators are known.

        Returns:
            sums (B,), weighted_centers (B, D) or None, and, where pending.base is None, the maximum (B,) that the
            exponents are relative to.
        """
        batch, width = pending.unit.shape
        sums = pending.unit.new_zeros(batch)
        weighted_centers = pending.unit.new_zeros(batch, width) if want_weighted_centers else None
        running_max = None if pending.base is not None else sums.new_full((batch,), torch.finfo(sums.dtype).min)
        step = self.chunk_rows(batch)
        for lo in range(0, pending.num_rows, step):
            chunk = self._chunk(pending, lo, min(lo + step, pending.num_rows))
            if running_max is not None:
                rescale = _update_running_max_(running_max, chunk.logits)
                sums.mul_(rescale)
                if weighted_centers is not None:
                    weighted_centers.mul_(rescale[:, None])
            exponentials = _exponentials_(chunk.logits, running_max if pending.base is None else pending.base)
            sums += _column_sums(exponentials, sums.dtype)
            chunk.apply_slope_()
            if weighted_centers is not None:
                _add_product_(weighted_centers, exponentials.T, chunk.units)
        return sums, weighted_centers, running_max

    def _chunk(self, pending: PendingGradient, lo: int, hi: int) -> "_Chunk":
        """Compute the logits of places lo..hi-1, without targets, with conflict filter and margin applied."""
        units = self.workspace.get("units", (hi - lo, pending.unit.shape[1]), self.product_dtype)
        self.centers.read_units(pending.block(lo, hi), units, pending.fetched_rows(lo, hi))
        if pending.keeps(hi):
            logits = pending.kept[lo:hi]  # type: ignore[index]
        else:
            logits = self.workspace.get("logits", (hi - lo, pending.unit.shape[0]), self.product_dtype)
        torch.mm(units, pending.scaled.T, out=logits)
        first, last = pending.targets(lo, hi)
        logits[pending.positions[first:last] - lo, pending.samples[first:last]] = -math.inf
        threshold = self.margin.conflict_threshold
        conflicts = None if threshold is None else logits > self.margin.scale * threshold
        slope = self.margin.modulate_negatives_(logits, pending.sample_stats)
        if conflicts is not None:
            logits.masked_fill_(conflicts, 0)
        return _Chunk(units, logits, slope, conflicts)

    def gradient_factors(self, pending: PendingGradient) -> Tensor:
        """Return what the exponentials are multiplied by for the centers' gradient, (B, D) in the products' type."""
        assert pending.weight is not None
        assert pending.factor is not None
        return (pending.unit * (pending.weight * pending.factor)[:, None]).to(self.product_dtype)

    def center_gradient(self, pending: PendingGradient, factors: Tensor, lo: int, hi: int, out: Tensor) -> Tensor:
        """Fill out with the loss's gradient by the unit rows at places lo..hi-1.

        Args:
            factors: as `gradient_factors` returned them.
            out: (hi - lo, D), math type.
        """
        if pending.keeps(hi):
            exponentials = pending.kept[lo:hi]  # type: ignore[index]
        else:
            chunk = self._chunk(pending, lo, hi)
            exponentials = _exponentials_(chunk.logits, pending.base)
            chunk.apply_slope_()
        if out.dtype == factors.dtype:
            torch.mm(exponentials, factors, out=out)
        else:
            product = self.workspace.get("product", (hi - lo, factors.shape[1]), factors.dtype)
            out.copy_(torch.mm(exponentials, factors, out=product))
        first, last = pending.targets(lo, hi)
        assert pending.target_weight is not None
        assert pending.factor is not None
        strength = (pending.target_weight[first:last] * pending.factor)[:, None]
        targets = pending.unit[pending.samples[first:last]] * strength
        return _add_rows_(out, pending.positions[first:last] - lo, targets)


@dataclass
class _Chunk:
    units: Tensor  # (n, D)
    logits: Tensor  # (n, B), becomes exponentials in place
    slope: Tensor | None
    conflicts: Tensor | None

    def apply_slope_(self) -> None:
        """Turn the exponentials into d sum / d (scaled cosine): times the margin's slope, zero at conflicts."""
        if self.slope is not None:
            self.logits.mul_(self.slope)
        if self.conflicts is not None:
            self.logits.masked_fill_(self.conflicts, 0)


def _add_rows_(total: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Add rows at places, of which some occur several times, in an order that does not change from run to run.

    Each device has another operation that keeps an order: index_add_ is atomic on a GPU, index_put_ on a CPU.
    """
    if total.is_cuda:
        return total.index_put_((places,), rows, accumulate=True)
    return total.index_add_(0, places, rows)


def _column_sums(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums of the columns of (n, B), (B,).

    Sums slabs first, so that each core adds rows that it wrote itself. Reading rows that another core had just written
    took seven times as long as the sum, as measured.
    """
    whole = len(values) // SLABS
    sums = values[: whole * SLABS].view(SLABS, whole, values.shape[1]).sum(1, dtype=dtype).sum(0)
    return sums + values[whole * SLABS :].sum(0, dtype=dtype)


def _exponentials_(logits: Tensor, base: Tensor | float | None) -> Tensor:
    assert base is not None
    if not (isinstance(base, float) and base == 0.0):
        logits.sub_(base)
    return logits.exp_()


def _update_running_max_(running_max: Tensor, logits: Tensor) -> Tensor:
    """Update the running maximum (B,) in place; return the factor that rescales the sums so far."""
    before = running_max.clone()
    torch.maximum(running_max, logits.amax(0).to(running_max.dtype), out=running_max)
    return before.sub_(running_max).exp_()


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)
