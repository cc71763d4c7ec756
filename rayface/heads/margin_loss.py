"""Loss of Partial FC as one autograd node: gather, sharded softmax, reduction, and the embeddings' gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from rayface.heads.class_centers import inverse_norms
from rayface.heads.collectives import Collectives, Layout
from rayface.heads.sharded_softmax import PendingGradient, exponent_base

if TYPE_CHECKING:
    from rayface.heads.partial_fc import PartialFC


class NonFiniteEmbeddingsError(ValueError):
    """An embedding of the global batch is NaN or infinite; raised on every rank, before any update."""


class _Context(Protocol):
    """Values saved in the forward pass for the backward pass."""

    head: PartialFC
    dtype: torch.dtype
    outcome: _Outcome | None


class MarginLoss(torch.autograd.Function):
    """Mean margin softmax loss over the global batch; backward hands the centers' gradient to the head."""

    @staticmethod
    def forward(
        ctx: _Context,
        embeddings: Tensor,
        anchor: Tensor,
        labels: Tensor,
        head: PartialFC,
        layout: Layout,
        differentiate: bool,
    ) -> Tensor:
        ctx.head, ctx.dtype = head, embeddings.dtype
        # the head sets the type of each product itself
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = _gather_batch(embeddings, labels, head, layout)
            value, ctx.outcome = _evaluate(head, batch, differentiate)
        return value

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        head, outcome = ctx.head, ctx.outcome
        assert outcome is not None  # autograd calls backward only if a gradient is required
        head.keep(outcome.pending, gradient)
        return outcome.embedding_gradient(head.collectives, gradient).to(ctx.dtype), None, None, None, None, None


@dataclass
class _Batch:
    """The global batch, concatenated in order of rank."""

    unit: Tensor  # (B, D), rows of zeros where the embedding is zero
    inverse: Tensor  # (B, 1), one over the norm, or 0
    norms: Tensor  # (B,)
    labels: Tensor  # (B,) global
    layout: Layout


@dataclass
class _Outcome:
    """Saved for backward."""

    pending: PendingGradient
    weighted_centers: Tensor  # (B, D) gradient of the global mean by the unit embeddings
    complete: bool  # weighted_centers are already summed over ranks
    batch: _Batch
    by_norm: Tensor | None  # (B,) gradient by the norms

    def embedding_gradient(self, ranks: Collectives, factor: Tensor) -> Tensor:
        """Return this rank's (B_local, D), times the number of ranks (data-parallel training takes a mean)."""
        own = self.batch.layout.own
        weighted_centers = (
            self.weighted_centers[own] if self.complete else ranks.sum_own(self.weighted_centers, self.batch.layout)
        )
        unit = self.batch.unit[own]
        radial = torch.linalg.vecdot(weighted_centers, unit)[:, None]
        gradient = (weighted_centers - radial * unit) * self.batch.inverse[own]
        if self.by_norm is not None:
            gradient += self.by_norm[own, None] * unit
        return gradient * (factor * ranks.size)


def _gather_batch(embeddings: Tensor, labels: Tensor, head: PartialFC, layout: Layout) -> _Batch:
    """Gather the batches of all ranks in one collective, and check them."""
    local, labels = head.collectives.gather_labelled(embeddings.detach().to(head.store.math_dtype), labels, layout)
    norms = torch.linalg.vector_norm(local, dim=1)
    _check_batch(norms, labels, head.num_classes, layout)
    inverse = inverse_norms(local)
    return _Batch(local * inverse, inverse, norms, labels, layout)


def _check_batch(norms: Tensor, labels: Tensor, num_classes: int, layout: Layout) -> None:
    """Raise for NaN and for labels out of range; transfers one number from the device."""
    finite, known = torch.isfinite(norms), (labels >= 0) & (labels < num_classes)
    if bool((finite & known).all()):
        return
    for name, good in (("embeddings", finite), ("labels", known)):
        if not bool(good.all()):
            place = int((~good).nonzero()[0, 0])
            rank, row = layout.owner(place)
            where = f"row {row} of the batch of rank {rank}"
            if name == "embeddings":
                raise NonFiniteEmbeddingsError(
                    f"embeddings: {where} holds NaN or infinity; lower optim.lr or check the data"
                )
            raise ValueError(
                f"labels: {int(labels[place])} in {where} must be in [0, {num_classes}), the head's num_classes"
            )


def _evaluate(head: PartialFC, batch: _Batch, differentiate: bool) -> tuple[Tensor, _Outcome | None]:
    """Return the loss and, with `differentiate`, the values for its gradients."""
    margin, ranks = head.margin, head.collectives
    observed = differentiate and head.place[1] == 0  # once per step, whatever the number of its micro-batches
    pending, target_units = _new_pending(head, batch)
    cosine = torch.linalg.vecdot(batch.unit, target_units).clamp_(-1, 1)  # 0 where another rank has the class
    if margin.needs_target_cosines:
        ranks.sum_(cosine)
        if observed:
            margin.observe(cosine, batch.norms)
        pending.sample_stats = margin.sample_stats(cosine)
    pending.base = exponent_base(margin, head.num_classes, cosine.dtype)
    if differentiate and pending.base is not None:
        pending.kept = head.softmax.keep_buffer(pending.num_rows, len(cosine))
    sums, weighted_centers, base = _accumulate(head, pending, differentiate)
    if margin.needs_target_cosines and weighted_centers is not None:
        # the all-reduce took place above, so this one replaces the reduce-scatter as well
        packed = ranks.sum_(torch.cat([sums[:, None], weighted_centers, target_units], dim=1))
        sums = packed[:, 0]
        weighted_centers, target_units = packed[:, 1:].chunk(2, dim=1)
    elif margin.needs_target_cosines:
        ranks.sum_(sums)
    else:
        sums, cosine = ranks.sum_(torch.stack([sums, cosine])).unbind()
        if observed:
            margin.observe(cosine, batch.norms)
    return _conclude(head, batch, pending, _Sums(sums, weighted_centers, target_units, cosine, base))


@dataclass
class _Sums:
    sums: Tensor  # (B,) over the other classes of all ranks, of exp(logit - base)
    weighted_centers: Tensor | None  # (B, D)
    target_units: Tensor  # (B, D) unit centers of the targets, zeros where another rank has them
    cosine: Tensor  # (B,) to the targets
    base: Tensor | float


def _new_pending(head: PartialFC, batch: _Batch) -> tuple[PendingGradient, Tensor]:
    """Choose the rows; return the pending gradient, and unit centers (B, D) of the targets on this rank, else 0."""
    samples, classes = head.own_targets(batch.labels)
    centers = head.store.read(classes)
    target_units = torch.zeros_like(batch.unit)
    target_units[samples] = centers * inverse_norms(centers)
    fetched = head.fetched_rows(batch.labels)
    rows = head.choose_rows(classes, head.place) if fetched is None else fetched.rows
    num_rows = head.last - head.first if rows is None else rows.numel()
    pending = PendingGradient(
        unit=batch.unit,
        scaled=(batch.unit * head.margin.scale).to(head.softmax.product_dtype),
        rows=rows,
        num_rows=num_rows,
        positions=classes if rows is None else torch.searchsorted(rows, classes),
        samples=samples,
        step=head.step_count,
        fetched=fetched,
    )
    return pending, target_units


def _accumulate(
    head: PartialFC, pending: PendingGradient, differentiate: bool
) -> tuple[Tensor, Tensor | None, Tensor | float]:
    """Return this rank's sums and weighted_centers, and the base that the exponents of all ranks share."""
    sums, weighted_centers, running_max = head.softmax.accumulate(pending, differentiate)
    if running_max is None:
        assert isinstance(pending.base, float)
        return sums, weighted_centers, pending.base
    top = head.collectives.max_(running_max.clone())
    rescale = torch.exp(running_max - top)
    return sums * rescale, None if weighted_centers is None else weighted_centers * rescale[:, None], top


def _conclude(head: PartialFC, batch: _Batch, pending: PendingGradient, total: _Sums) -> tuple[Tensor, _Outcome | None]:
    """Return the mean loss and the gradients, from the sums over all ranks."""
    margin, count = head.margin, len(batch.norms)
    differentiate = total.weighted_centers is not None
    with torch.set_grad_enabled(differentiate):
        cosine, norms = (t.detach().requires_grad_(differentiate) for t in (total.cosine, batch.norms))
        target = margin.scale * margin.target(cosine, norms, head.margin_generator())
        penalty = margin.penalty(norms)
    others = torch.log(total.sums) + total.base
    odds = others - target.detach()  # log((1 - p) / p) of the target
    value = torch.logaddexp(odds, torch.zeros_like(odds)).mean()  # softplus of torch is linear above 20
    if penalty is not None:
        value = value + penalty.detach().mean()
    if total.weighted_centers is None:
        return value, None
    with torch.enable_grad():
        # d loss / d target logit is p - 1; a sum, because torch imports sympy (36 MB) if grad gets weights
        slope = (target * odds.sigmoid().div_(-count)).sum()
        if penalty is not None:
            slope = slope + penalty.sum() / count
    by_cosine, by_norm = torch.autograd.grad(slope, (cosine, norms), allow_unused=True)
    log_sum = torch.logaddexp(others, target.detach())
    weight = torch.where(total.sums > 0, torch.exp(total.base - log_sum), 0.0) * (margin.scale / count)
    weighted_centers = total.weighted_centers * weight[:, None] + total.target_units * by_cosine[:, None]
    pending.target_weight = by_cosine[pending.samples]
    if pending.base is None:  # then they are recomputed relative to the true denominator
        pending.base, pending.weight = log_sum, torch.full_like(weight, margin.scale / count)
    else:
        pending.weight = weight
    return value, _Outcome(pending, weighted_centers, margin.needs_target_cosines, batch, by_norm)
