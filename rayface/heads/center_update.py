"""Update of the class centers with the gradients of all losses of a step, in blocks of rows."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from rayface.heads.class_centers import Block
from rayface.heads.sharded_softmax import PendingGradient, ShardSoftmax


class CenterUpdate:
    """Accumulate gradients between steps, and apply them.

    Args:
        softmax: computes a gradient from its factors.
        sparse: update only the rows that the losses used; else all rows.

    Attributes:
        pending: pending gradients of the losses that were differentiated since the last step.
    """

    def __init__(self, softmax: ShardSoftmax, *, sparse: bool) -> None:
        self._softmax, self._sparse = softmax, sparse
        self.pending: list[PendingGradient] = []

    def add(self, pending: PendingGradient, factor: Tensor) -> None:
        """Keep the gradient of a loss, times factor (), until the next step."""
        if any(pending is known for known in self.pending):
            pending.factor = pending.factor + factor  # type: ignore[operator]
        else:
            pending.factor = factor
            self.pending.append(pending)

    def discard(self) -> None:
        """Drop the pending gradients."""
        for pending in self.pending:
            self._softmax.release(pending)
        self.pending.clear()

    def apply(self, step: int, lr: float, grad_scale: float) -> None:
        """Update the centers, and drop the gradients.

        Args:
            step: number of the step, which keys stochastic rounding.
            grad_scale: factor of the losses before backward.
        """
        for pending in self.pending:
            assert pending.factor is not None
            pending.factor = pending.factor / grad_scale
        store = self._softmax.centers
        store.begin_step(step)
        factors = [self._softmax.gradient_factors(pending) for pending in self.pending]
        for block, spans in self._blocks():
            store.update(block, self._gradient(block, spans, factors), lr, self._fetched(block, spans))
        self.discard()

    def _blocks(self) -> Iterator[tuple[Block, list[tuple[int, int]]]]:
        """Yield the blocks of rows to update, and the indices of each pending gradient's rows in them."""
        pending = self.pending[0]
        size = self._softmax.chunk_rows(pending.unit.shape[0])
        if len(self.pending) == 1 and (pending.rows is None or self._sparse):
            for lo in range(0, pending.num_rows, size):
                hi = min(lo + size, pending.num_rows)
                yield pending.block(lo, hi), [(lo, hi)]
            return
        used = None
        if self._sparse and all(pending.rows is not None for pending in self.pending):
            used = torch.unique(torch.cat([pending.rows for pending in self.pending if pending.rows is not None]))
        total = len(self._softmax.centers) if used is None else used.numel()
        if not total:  # few classes on many ranks
            return
        edges = [*range(0, total, size), total]
        spans = [pending.spans(edges, used) for pending in self.pending]
        for index, (lo, hi) in enumerate(pairwise(edges)):
            block = slice(lo, hi) if used is None else used[lo:hi]
            yield block, [(places[index], places[index + 1]) for places in spans]

    def _gradient(self, block: Block, spans: list[tuple[int, int]], factors: list[Tensor]) -> Tensor:
        """Return the sum of the pending gradients by the unit rows of a block, (n, D) math type."""
        rows = block.stop - block.start if isinstance(block, slice) else block.numel()
        space, dtype = self._softmax.workspace, self._softmax.centers.math_dtype
        width = self._softmax.centers.values.shape[1]
        total = space.get("gradient", (rows, width), dtype)
        if len(spans) == 1 and spans[0][1] - spans[0][0] == rows:
            return self._softmax.center_gradient(self.pending[0], factors[0], *spans[0], out=total)
        total.zero_()
        for pending, its_factors, (lo, hi) in zip(self.pending, factors, spans, strict=True):
            part = space.get("part", (hi - lo, width), dtype)
            self._softmax.center_gradient(pending, its_factors, lo, hi, out=part)
            total.index_add_(0, pending.places_in(block, lo, hi), part)
        return total

    def _fetched(self, block: Block, spans: list[tuple[int, int]]) -> Tensor | None:
        """Return the prefetched rows of a block, if the only pending gradient has exactly these."""
        (lo, hi), count = spans[0], block.stop - block.start if isinstance(block, slice) else block.numel()
        return self.pending[0].fetched_rows(lo, hi) if len(spans) == 1 and hi - lo == count else None
