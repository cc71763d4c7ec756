"""Margin softmax over one rank's rows in chunks, with what the other ranks must add, and its gradients.

With unit rows u_j, unit embeddings e_i and X_ji = exp(z_ji - base) for the classes other than the target, one pass over
the chunks gives sums_i = sum_j X_ji and pulls_i = sum_j X_ji u_j. The softmax's denominator scales whole columns, so
both gradients follow later without touching X again: the embeddings' from pulls, the centers' as X @ (weight * e), X
being kept or computed again chunk by chunk.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from rayface.heads.class_centers import Block, ClassCenters, Workspace
from rayface.heads.margins import Margin
from rayface.heads.prefetch import FetchedRows

# What is worked on at once: bytes of a matrix that fit the caches of a CPU, rows that fill a GPU.
CPU_CHUNK_BYTES, GPU_CHUNK_ROWS = 4 * 2**20, 16384
SLABS = 64  # parts of a chunk that are summed on their own


@dataclass(frozen=True)
class Layout:
    """Which rows of the global batch are whose, where ranks may have different numbers of them."""

    counts: tuple[int, ...]
    rank: int

    @property
    def own(self) -> slice:
        """The rank's rows of the global batch."""
        first = sum(self.counts[: self.rank])
        return slice(first, first + self.counts[self.rank])

    @property
    def even(self) -> bool:
        return len(set(self.counts)) == 1

    def places(self, device: torch.device) -> Tensor:
        """Where the rows of the global batch lie when every rank's part is padded to the largest, (B,)."""
        width = max(self.counts)
        parts = [torch.arange(rank * width, rank * width + n, device=device) for rank, n in enumerate(self.counts)]
        return torch.cat(parts)

    def owner(self, row: int) -> tuple[int, int]:
        """The rank of a row of the global batch, and its place there."""
        for rank, count in enumerate(self.counts):
            if row < count:
                return rank, row
            row -= count
        raise IndexError(row)


class Ranks:
    """The collectives of a process group; free of cost without one."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        alone = not (dist.is_available() and dist.is_initialized())
        self.group = group
        self.size = 1 if alone else dist.get_world_size(group)
        self.rank = 0 if alone else dist.get_rank(group)

    def layout(self, rows: int, counts: Sequence[int] | None) -> Layout:
        """Return whose rows are whose; ValueError if `counts` is not for these ranks or does not say `rows` of us."""
        counts = (rows,) * self.size if counts is None else tuple(counts)
        if len(counts) != self.size or counts[self.rank] != rows:
            raise ValueError(f"counts {counts} must be the rows of {self.size} ranks, {rows} of rank {self.rank}")
        return Layout(counts, self.rank)

    def gather(self, local: Tensor, layout: Layout) -> Tensor:
        """Return the rows of all ranks, (B, k), from (n, k) of each; padded on the way where n differs."""
        if self.size == 1:
            return local
        width = max(layout.counts)
        if len(local) < width:
            local = torch.cat([local, local.new_zeros(width - len(local), local.shape[1])])
        out = local.new_empty(self.size * width, local.shape[1])
        # the first name is the newer one; the older still works but warns
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(out, local.contiguous(), group=self.group)
        return out if layout.even else out[layout.places(out.device)]

    def sum_(self, values: Tensor) -> Tensor:
        """Replace values by their sum over ranks."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def max_(self, values: Tensor) -> Tensor:
        """Replace values by their maximum over ranks."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def sum_own(self, values: Tensor, layout: Layout) -> Tensor:
        """Return this rank's rows, (n, k), of the sum over ranks of (B, k)."""
        if self.size == 1:
            return values
        width = max(layout.counts)
        if not layout.even:
            padded = values.new_zeros(self.size * width, values.shape[1])
            padded[layout.places(values.device)] = values
            values = padded
        out = values.new_empty(width, values.shape[1])
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        scatter(out, values.contiguous(), group=self.group)
        return out[: layout.counts[self.rank]]


def exponent_base(margin: Margin, num_classes: int, dtype: torch.dtype) -> float | None:
    """Return a constant that may stand for the row maximum in the softmax, or None where there is none.

    Logits to other classes lie in [s lo, s hi]. With H = s hi + ln(C), the sum of C terms exp(z - base) stays finite if
    H - base < ln(max), and no term is lost to underflow if s lo - base > ln(tiny). Both can hold if
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
class Term:
    """What one loss leaves behind for the update: the centers' gradient in factors, never as a matrix."""

    unit: Tensor  # (B, D) unit embeddings of the global batch, math type
    scaled: Tensor  # (B, D) times the scale, type of the products
    rows: Tensor | None  # (n,) sorted local rows in use; None: all
    num_rows: int
    positions: Tensor  # (P,) where in rows the targets lie, ascending
    samples: Tensor  # (P,) whose targets they are
    step: int  # of the head when the loss was taken
    fetched: FetchedRows | None = None  # the same rows with their centers, if they were fetched beforehand
    base: Tensor | float | None = None  # of the exponents; None: the maximum of the logits
    hardness: Tensor | None = None  # what the margin knows of each sample
    kept: Tensor | None = None  # (k, B) exponentials of the first k rows
    weight: Tensor | None = None  # (B,) d loss / d X, times the scale
    target_weight: Tensor | None = None  # (P,) d loss / d target cosine
    factor: Tensor | None = None  # gradient that arrived at the loss
    places: list[int] = field(default_factory=list)  # positions, on the host

    def __post_init__(self) -> None:
        self.places = self.positions.tolist()

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

    def weighted_units(self, dtype: torch.dtype) -> Tensor:
        """Return what the exponentials are multiplied by for the centers' gradient, (B, D)."""
        assert self.weight is not None
        assert self.factor is not None
        return (self.unit * (self.weight * self.factor)[:, None]).to(dtype)

    def keeps(self, hi: int) -> bool:
        """Return whether the exponentials up to place hi are in memory."""
        return self.kept is not None and hi <= self.kept.shape[0]

    def block(self, lo: int, hi: int) -> Block:
        """Return the local rows of places lo..hi-1."""
        return slice(lo, hi) if self.rows is None else self.rows[lo:hi]

    def fetched_rows(self, lo: int, hi: int) -> Tensor | None:
        """Return the centers of places lo..hi-1 in the storage type if they were fetched beforehand."""
        there = None if self.fetched is None else self.fetched.centers
        return None if there is None else there[lo:hi]


class ShardSoftmax:
    """The arithmetic on one rank's rows.

    Memory: `logit_memory` bytes for exponentials, and chunks of chunk_rows rows.
    """

    def __init__(self, centers: ClassCenters, margin: Margin, *, product_dtype: torch.dtype, logit_memory: int) -> None:
        self.centers, self.margin = centers, margin
        self.product_dtype, self.logit_memory = product_dtype, logit_memory
        self.workspace = Workspace(centers.device)
        self._spare: Tensor | None = None

    def chunk_rows(self, batch: int) -> int:
        """Return how many rows are worked on at once: what fits the caches of a CPU, or fills a GPU."""
        longest = max(batch, self.centers.values.shape[1])
        on_cpu, fitting = self.centers.device.type == "cpu", CPU_CHUNK_BYTES // (longest * self.product_dtype.itemsize)
        affordable = self.logit_memory // (2 * batch * self.centers.math_dtype.itemsize)
        return max(1, min(fitting if on_cpu else GPU_CHUNK_ROWS, affordable))

    def keep_buffer(self, num_rows: int, batch: int) -> Tensor:
        """Return memory for the exponentials of as many of the rows as the bound allows, whole chunks."""
        chunk = self.chunk_rows(batch)
        affordable = self.logit_memory // (batch * self.product_dtype.itemsize) - chunk
        kept = num_rows if num_rows <= affordable else max(0, affordable) // chunk * chunk
        if self._spare is not None and self._spare.numel() >= kept * batch:
            spare, self._spare = self._spare, None
        else:
            self._spare = None
            spare = torch.empty(kept * batch, dtype=self.product_dtype, device=self.centers.device)
        return spare[: kept * batch].view(kept, batch)

    def release(self, term: Term) -> None:
        """Take a term's memory back for the next one."""
        if term.kept is not None and term.kept.numel():
            self._spare = term.kept.view(-1)
        term.kept = term.fetched = None

    def accumulate(self, term: Term, want_pulls: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run over the chunks once, before the denominators are known.

        Returns:
            sums (B,), pulls (B, D) or None, and the maximum (B,) the exponents are relative to where term.base is None.
        """
        batch, width = term.unit.shape
        sums = term.unit.new_zeros(batch)
        pulls = term.unit.new_zeros(batch, width) if want_pulls else None
        peak = None if term.base is not None else sums.new_full((batch,), torch.finfo(sums.dtype).min)
        step = self.chunk_rows(batch)
        for lo in range(0, term.num_rows, step):
            chunk = self._chunk(term, lo, min(lo + step, term.num_rows))
            if peak is not None:
                rescale = _raise_peak_(peak, chunk.logits)
                sums.mul_(rescale)
                if pulls is not None:
                    pulls.mul_(rescale[:, None])
            exponentials = _exponentials_(chunk.logits, peak if term.base is None else term.base)
            sums += _column_sums(exponentials, sums.dtype)
            chunk.damp_()
            if pulls is not None:
                _add_product_(pulls, exponentials.T, chunk.units)
        return sums, pulls, peak

    def _chunk(self, term: Term, lo: int, hi: int) -> "_Chunk":
        """Compute the logits of places lo..hi-1, targets taken out, conflicts and margin applied."""
        units = self.workspace.get("units", (hi - lo, term.unit.shape[1]), self.product_dtype)
        self.centers.read_units(term.block(lo, hi), units, term.fetched_rows(lo, hi))
        if term.keeps(hi):
            logits = term.kept[lo:hi]  # type: ignore[index]
        else:
            logits = self.workspace.get("logits", (hi - lo, term.unit.shape[0]), self.product_dtype)
        torch.mm(units, term.scaled.T, out=logits)
        first, last = term.targets(lo, hi)
        logits[term.positions[first:last] - lo, term.samples[first:last]] = -math.inf
        threshold = self.margin.conflict_threshold
        conflicts = None if threshold is None else logits > self.margin.scale * threshold
        slope = self.margin.bend_(logits, term.hardness)
        if conflicts is not None:
            logits.masked_fill_(conflicts, 0)
        return _Chunk(units, logits, slope, conflicts)

    def center_gradient(self, term: Term, weighted: Tensor, lo: int, hi: int, out: Tensor) -> Tensor:
        """Fill out with the loss's gradient by the unit rows at places lo..hi-1.

        Args:
            weighted: (B, D) unit embeddings times term.weight and factor, type of the products.
            out: (hi - lo, D), math type.
        """
        if term.keeps(hi):
            exponentials = term.kept[lo:hi]  # type: ignore[index]
        else:
            chunk = self._chunk(term, lo, hi)
            exponentials = _exponentials_(chunk.logits, term.base)
            chunk.damp_()
        if out.dtype == weighted.dtype:
            torch.mm(exponentials, weighted, out=out)
        else:
            product = self.workspace.get("product", (hi - lo, weighted.shape[1]), weighted.dtype)
            out.copy_(torch.mm(exponentials, weighted, out=product))
        first, last = term.targets(lo, hi)
        assert term.target_weight is not None
        assert term.factor is not None
        strength = (term.target_weight[first:last] * term.factor)[:, None]
        return out.index_add_(0, term.positions[first:last] - lo, term.unit[term.samples[first:last]] * strength)


@dataclass
class _Chunk:
    units: Tensor  # (n, D)
    logits: Tensor  # (n, B), becomes exponentials in place
    slope: Tensor | None
    conflicts: Tensor | None

    def damp_(self) -> None:
        """Make d sum / d (scaled cosine) of the exponentials: the slope of the margin, nothing at conflicts."""
        if self.slope is not None:
            self.logits.mul_(self.slope)
        if self.conflicts is not None:
            self.logits.masked_fill_(self.conflicts, 0)


def _column_sums(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sums of the columns of (n, B), (B,).

    Slab by slab first, so that a core adds up rows that it wrote itself: reading what another core has just written
    cost seven times the sum where it was measured.
    """
    whole = len(values) // SLABS
    sums = values[: whole * SLABS].view(SLABS, whole, values.shape[1]).sum(1, dtype=dtype).sum(0)
    return sums + values[whole * SLABS :].sum(0, dtype=dtype)


def _exponentials_(logits: Tensor, base: Tensor | float | None) -> Tensor:
    assert base is not None
    if not (isinstance(base, float) and base == 0.0):
        logits.sub_(base)
    return logits.exp_()


def _raise_peak_(peak: Tensor, logits: Tensor) -> Tensor:
    """Raise the running maximum (B,) in place; return what sums so far must be multiplied by."""
    before = peak.clone()
    torch.maximum(peak, logits.amax(0).to(peak.dtype), out=peak)
    return before.sub_(peak).exp_()


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)
