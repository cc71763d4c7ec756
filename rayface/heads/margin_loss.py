"""The loss of Partial FC as one autograd node: gather, sharded softmax, reduction, and the embeddings' gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayface.heads.class_centers import inverse_norms
from rayface.heads.sharded_softmax import Layout, Ranks, Term, exponent_base

if TYPE_CHECKING:
    from rayface.heads.partial_fc import PartialFC


class NonFiniteEmbeddingsError(ValueError):
    """An embedding of the global batch is NaN or infinite; raised on every rank at once, before anything moves."""


class MarginLoss(torch.autograd.Function):
    """Mean margin softmax loss over the global batch; leaves the centers' gradient in the head."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        anchor: Tensor,
        labels: Tensor,
        head: PartialFC,
        layout: Layout,
        differentiate: bool,
    ) -> Tensor:
        ctx.head, ctx.dtype = head, embeddings.dtype
        # the head chooses the type of each product itself
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = _gather_batch(embeddings, labels, head, layout)
            value, ctx.outcome = _evaluate(head, batch, differentiate)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        head, outcome = ctx.head, ctx.outcome
        head.keep(outcome.term, gradient)
        return outcome.embedding_gradient(head.ranks, gradient).to(ctx.dtype), None, None, None, None, None


@dataclass
class _Batch:
    """The global batch, rank after rank."""

    unit: Tensor  # (B, D), rows of zeros where the embedding is zero
    inverse: Tensor  # (B, 1), one over the norm, or 0
    norms: Tensor  # (B,)
    labels: Tensor  # (B,) global
    layout: Layout


@dataclass
class _Outcome:
    """What backward needs."""

    term: Term
    pulls: Tensor  # (B, D) gradient of the global mean by the unit embeddings
    complete: bool  # pulls are already summed over ranks
    batch: _Batch
    by_norm: Tensor | None  # (B,) gradient by the norms

    def embedding_gradient(self, ranks: Ranks, factor: Tensor) -> Tensor:
        """Return this rank's (B_local, D), times the number of ranks (data-parallel training takes a mean)."""
        own = self.batch.layout.own
        pulls = self.pulls[own] if self.complete else ranks.sum_own(self.pulls, self.batch.layout)
        unit = self.batch.unit[own]
        radial = torch.linalg.vecdot(pulls, unit)[:, None]
        gradient = (pulls - radial * unit) * self.batch.inverse[own]
        if self.by_norm is not None:
            gradient += self.by_norm[own, None] * unit
        return gradient * (factor * ranks.size)


def _gather_batch(embeddings: Tensor, labels: Tensor, head: PartialFC, layout: Layout) -> _Batch:
    """Bring the batches of all ranks together in one collective, and check them."""
    dtype, width = head.store.math_dtype, embeddings.shape[1]
    local = embeddings.detach().to(dtype)
    if head.ranks.size > 1:
        # the labels travel as bits in further columns
        tail = labels.contiguous().view(dtype).view(len(labels), -1)
        together = head.ranks.gather(torch.cat([local, tail], dim=1), layout)
        local = together[:, :width].contiguous()
        labels = together[:, width:].contiguous().view(torch.int64).view(-1)
    norms = torch.linalg.vector_norm(local, dim=1)
    _check_batch(norms, labels, head.num_classes, layout)
    inverse = inverse_norms(local)
    return _Batch(local * inverse, inverse, norms, labels, layout)


def _check_batch(norms: Tensor, labels: Tensor, num_classes: int, layout: Layout) -> None:
    """Raise for NaN and foreign labels; one transfer of one number from the device."""
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
    """Return the loss, and what its gradients need unless that is not wanted."""
    margin, ranks = head.margin, head.ranks
    term, target_units = _new_term(head, batch)
    cosine = torch.linalg.vecdot(batch.unit, target_units).clamp_(-1, 1)  # 0 where another rank has the class
    if margin.needs_target_cosines:
        ranks.sum_(cosine)
        if differentiate:
            margin.observe(cosine, batch.norms)
        term.hardness = margin.hardness(cosine)
    term.base = exponent_base(margin, head.num_classes, cosine.dtype)
    if differentiate and term.base is not None:
        term.kept = head.softmax.keep_buffer(term.num_rows, len(cosine))
    sums, pulls, base = _accumulate(head, term, differentiate)
    if margin.needs_target_cosines and pulls is not None:
        # the one all-reduce is spent, so this sum stands in for the reduce-scatter too
        packed = ranks.sum_(torch.cat([sums[:, None], pulls, target_units], dim=1))
        sums = packed[:, 0]
        pulls, target_units = packed[:, 1:].chunk(2, dim=1)
    elif margin.needs_target_cosines:
        ranks.sum_(sums)
    else:
        sums, cosine = ranks.sum_(torch.stack([sums, cosine])).unbind()
        if differentiate:
            margin.observe(cosine, batch.norms)
    return _conclude(head, batch, term, _Sums(sums, pulls, target_units, cosine, base))


@dataclass
class _Sums:
    sums: Tensor  # (B,) over the other classes of all ranks, of exp(logit - base)
    pulls: Tensor | None  # (B, D)
    target_units: Tensor  # (B, D) unit centers of the targets, zeros where another rank has them
    cosine: Tensor  # (B,) to the targets
    base: Tensor | float


def _new_term(head: PartialFC, batch: _Batch) -> tuple[Term, Tensor]:
    """Choose the rows; return the term and the unit centers of the targets this rank holds, (B, D), else zeros."""
    samples, classes = head.own_targets(batch.labels)
    centers = head.store.read(classes)
    target_units = torch.zeros_like(batch.unit)
    target_units[samples] = centers * inverse_norms(centers)
    fetched = head.fetched_rows(batch.labels)
    rows = head.choose_rows(classes, head.place) if fetched is None else fetched.rows
    num_rows = head.last - head.first if rows is None else rows.numel()
    term = Term(
        unit=batch.unit,
        scaled=(batch.unit * head.margin.scale).to(head.softmax.product_dtype),
        rows=rows,
        num_rows=num_rows,
        positions=classes if rows is None else torch.searchsorted(rows, classes),
        samples=samples,
        step=head.step_count,
        fetched=fetched,
    )
    return term, target_units


def _accumulate(head: PartialFC, term: Term, differentiate: bool) -> tuple[Tensor, Tensor | None, Tensor | float]:
    """Return this rank's sums and pulls, and the base all ranks' exponents share."""
    sums, pulls, peak = head.softmax.accumulate(term, differentiate)
    if peak is None:
        assert isinstance(term.base, float)
        return sums, pulls, term.base
    top = head.ranks.max_(peak.clone())
    rescale = torch.exp(peak - top)
    return sums * rescale, None if pulls is None else pulls * rescale[:, None], top


def _conclude(head: PartialFC, batch: _Batch, term: Term, total: _Sums) -> tuple[Tensor, _Outcome | None]:
    """Return the mean loss and the gradients, from the sums over all ranks."""
    margin, count = head.margin, len(batch.norms)
    differentiate = total.pulls is not None
    with torch.set_grad_enabled(differentiate):
        cosine, norms = (t.detach().requires_grad_(differentiate) for t in (total.cosine, batch.norms))
        target = margin.scale * margin.target(cosine, norms, head.margin_generator())
        penalty = margin.penalty(norms)
    others = torch.log(total.sums) + total.base
    odds = others - target.detach()  # log((1 - p) / p) of the target
    value = torch.logaddexp(odds, torch.zeros_like(odds)).mean()  # softplus of torch is linear above 20
    if penalty is not None:
        value = value + penalty.detach().mean()
    if total.pulls is None:
        return value, None
    with torch.enable_grad():
        # d loss / d target logit is p - 1; as a sum, for torch imports sympy (36 MB) where grad is given weights
        slope = (target * odds.sigmoid().div_(-count)).sum()
        if penalty is not None:
            slope = slope + penalty.sum() / count
    by_cosine, by_norm = torch.autograd.grad(slope, (cosine, norms), allow_unused=True)
    log_sum = torch.logaddexp(others, target.detach())
    weight = torch.where(total.sums > 0, torch.exp(total.base - log_sum), 0.0) * (margin.scale / count)
    pulls = total.pulls * weight[:, None] + total.target_units * by_cosine[:, None]
    term.target_weight = by_cosine[term.samples]
    if term.base is None:  # computed again relative to the true denominator, then
        term.base, term.weight = log_sum, torch.full_like(weight, margin.scale / count)
    else:
        term.weight = weight
    return value, _Outcome(term, pulls, margin.needs_target_cosines, batch, by_norm)
