"""Collectives of heads, over ranks whose parts of the global batch may differ in size."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which rows of the global batch belong to which rank; the ranks' counts may differ."""

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
        """Return the rows' indices, (B,), in a batch where every rank's part is padded to the largest."""
        width = max(self.counts)
        parts = [torch.arange(rank * width, rank * width + n, device=device) for rank, n in enumerate(self.counts)]
        return torch.cat(parts)

    def owner(self, row: int) -> tuple[int, int]:
        """Return the rank that a row of the global batch belongs to, and its index there."""
        for rank, count in enumerate(self.counts):
            if row < count:
                return rank, row
            row -= count
        raise IndexError(row)


class Collectives:
    """The collectives of a process group; without one, they return their input."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        alone = not (dist.is_available() and dist.is_initialized())
        self.group = group
        self.size = 1 if alone else dist.get_world_size(group)
        self.rank = 0 if alone else dist.get_rank(group)

    def layout(self, rows: int, counts: Sequence[int] | None) -> Layout:
        """Return the layout of the global batch.

        Args:
            rows: number of this rank's rows.
            counts: rows of every rank; None: the same on all.

        Raises:
            ValueError: `counts` has another number of ranks or of rows for this rank, or no rank has rows.
        """
        counts = (rows,) * self.size if counts is None else tuple(counts)
        if len(counts) != self.size or counts[self.rank] != rows:
            raise ValueError(f"counts {counts} must be the rows of {self.size} ranks, {rows} of rank {self.rank}")
        if not any(counts):
            raise ValueError("batch of 0 rows: must have at least one row on one of the ranks: leave it out on all")
        return Layout(counts, self.rank)

    def gather(self, local: Tensor, layout: Layout) -> Tensor:
        """Return the rows of all ranks, contiguous (B, k), from (n, k) of each; padded in transfer if n differs."""
        if self.size == 1:
            return local.contiguous()
        width = max(layout.counts)
        if len(local) < width:
            local = torch.cat([local, local.new_zeros(width - len(local), local.shape[1])])
        out = local.new_empty(self.size * width, local.shape[1])
        # The first name is the newer one; the older one warns.
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

    def gather_labelled(self, local: Tensor, labels: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return rows (B, k) and labels (B,) int64 of all ranks, contiguous; one collective sends labels as bits."""
        if self.size == 1:
            return local.contiguous(), labels.contiguous()
        width, tail = local.shape[1], labels.contiguous().view(local.dtype).view(len(labels), 8 // local.element_size())
        together = self.gather(torch.cat([local, tail], dim=1), layout)
        return together[:, :width].contiguous(), together[:, width:].contiguous().view(torch.int64).view(-1)

    def exchange(self, local: Tensor, parts: Sequence[Tensor], layout: Layout) -> Tensor:
        """Return the rows of the global batch that are this rank's part, (m, ...), from (n, ...) of each rank.

        Args:
            parts: rows of the global batch that each rank receives, ascending.
        """
        if self.size == 1:
            return local[parts[0]]
        own, edges = layout.own, [0, *accumulate(layout.counts)]
        sent = [part[(part >= own.start) & (part < own.stop)] - own.start for part in parts]
        bounds = torch.tensor(edges, device=parts[self.rank].device)
        received = torch.searchsorted(parts[self.rank], bounds).diff().tolist()
        out = local.new_empty(len(parts[self.rank]), *local.shape[1:])
        rows = local[torch.cat(sent)].contiguous()
        dist.all_to_all_single(out, rows, received, [len(part) for part in sent], group=self.group)
        return out

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
