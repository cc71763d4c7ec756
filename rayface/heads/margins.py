"""Margins: how a margin softmax changes cosines before the softmax.

A head asks a margin for the target's logit (a function of the target's cosine and the embedding's norm, differentiated
by autograd on vectors of one number per sample), for the change of the other cosines, and for the range of the
changed ones. Running statistics are updated from the gathered global batch. They are therefore the same on every rank
and need no collective of their own.
"""

import math

import torch
from torch import Tensor

GRADIENTS = ("straight_through", "exact")


class Margin:
    """Base of the margins: plain scaled cosines, with the optional conflict filter (PFC*, arXiv 2203.15565).

    Args:
        scale: the factor s on every logit, > 0.
        conflict_threshold: cosines to other classes above it get a logit of 0 and no gradient; None: no filter.

    Raises:
        ValueError: a parameter out of range: `NAME: VALUE: RULE`; with a config, NAME becomes that of its key.
    """

    needs_target_cosines = False  # set it where `modulate_negatives_` depends on the sample's own target cosine

    def __init__(self, scale: float, conflict_threshold: float | None = None) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: {scale}: must be a number > 0; 64 is usual")
        if conflict_threshold is not None and not 0 < conflict_threshold <= 1:
            raise ValueError(
                f"conflict_threshold: {conflict_threshold}: must be in (0, 1]; .4 is usual, null is no filter"
            )
        self.scale = float(scale)
        self.conflict_threshold = conflict_threshold

    def target(self, cosine: Tensor, norms: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the target's logit divided by the scale, (B,), differentiable in cosine (B,) and norms (B,)."""
        return cosine

    def penalty(self, norms: Tensor) -> Tensor | None:
        """Return a further loss term per sample, (B,), from the embeddings' norms, or None."""
        return None

    def observe(self, cosine: Tensor, norms: Tensor) -> None:
        """Update running statistics from a global batch: target cosines (B,) and norms (B,).

        Called once per update of the class centers, by the first loss.
        """

    def sample_stats(self, cosine: Tensor) -> Tensor | None:
        """Return what `modulate_negatives_` needs of each sample, (B,) or (k, B), from its target cosine (B,).

        It is kept with the loss: where logits are recomputed for the update, the running statistics have changed.
        """
        return None

    def modulate_negatives_(self, logits: Tensor, sample_stats: Tensor | None) -> Tensor | None:
        """Modulate the negatives' scaled cosines in place; return the slope d(new)/d(old), or None where it is 1.

        Args:
            logits: (n, B), scale times cosine.
            sample_stats: as the method `sample_stats` returned it.
        """
        return None

    def range(self) -> tuple[float, float]:
        """Return bounds of the cosines that `modulate_negatives_` returns for [-1, 1].

        Where they are narrow enough, the softmax needs no running maximum and no collective for it.
        """
        return -1.0, 1.0

    def state(self) -> dict[str, float]:
        """Return the running statistics by name."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:
        """Load the statistics that `state` returned."""
        for name in self.state():
            setattr(self, name, float(state[name]))

    def logits(self, cosine: Tensor, labels: Tensor, norms: Tensor | None = None) -> Tensor:
        """Return all logits at once, differentiable, (B, C); PartialFC works chunk by chunk instead.

        Args:
            cosine: (B, C) of embeddings to class centers.
            labels: (B,) int64, column of each sample's own class.
            norms: (B,) of the raw embeddings, for the margins that use them.
        """
        norms = torch.ones_like(cosine[:, 0]) if norms is None else norms
        own = cosine.gather(1, labels[:, None]).squeeze(1)
        if torch.is_grad_enabled():
            self.observe(own.detach(), norms.detach())
        others = _ModulatedLogits.apply(cosine, self, self.sample_stats(own.detach()))
        return others.scatter(1, labels[:, None], self.scale * self.target(own, norms)[:, None])


class _ModulatedLogits(torch.autograd.Function):
    """Conflict filter and `modulate_negatives_` on a whole matrix of cosines (B, C), with their gradient."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, cosine: Tensor, margin: Margin, sample_stats: Tensor | None
    ) -> Tensor:
        logits = cosine.detach() * margin.scale
        conflict = None
        if margin.conflict_threshold is not None:
            conflict = logits > margin.scale * margin.conflict_threshold
        slope = margin.modulate_negatives_(logits.T, sample_stats)
        slope = torch.full_like(cosine, margin.scale) if slope is None else slope.T * margin.scale
        if conflict is not None:
            logits.masked_fill_(conflict, 0)
            slope.masked_fill_(conflict, 0)
        ctx.save_for_backward(slope)
        return logits

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None


class CombinedMargin(Margin):
    """Target logit `s (cos(m1 theta + m2) - m3)` (ArcFace, arXiv 1801.07698, equation 4).

    Args:
        gradient: "straight_through" (arcface_torch's: the target cosine's gradient is s (p - 1), as if the margin were
            a constant) or "exact" (with the factor m1 sin(m1 theta + m2) / sin(theta)). Equal where only m3 is used.
    """

    def __init__(
        self,
        scale: float = 64.0,
        m1: float = 1.0,
        m2: float = 0.0,
        m3: float = 0.0,
        conflict_threshold: float | None = None,
        gradient: str = "straight_through",
    ) -> None:
        super().__init__(scale, conflict_threshold)
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient: {gradient!r}: must be one of {', '.join(GRADIENTS)}")
        for name, value in (("m1", m1), ("m2", m2), ("m3", m3)):
            check_number(name, value)
        self.m1, self.m2, self.m3 = m1, m2, m3
        self.gradient = gradient

    def target(self, cosine: Tensor, norms: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return cos(m1 theta + m2) - m3, (B,)."""
        if self.m1 == 1.0 and self.m2 == 0.0:
            return cosine - self.m3
        return self.add_angle(cosine, self.m1, self.m2) - self.m3

    def add_angle(self, cosine: Tensor, factor: float, angle_added: float | Tensor) -> Tensor:
        """Return cos(factor theta + angle_added), (B,), with the gradient that `gradient` names."""
        if self.gradient == "exact":
            return torch.cos(factor * angle(cosine) + angle_added)
        moved = torch.cos(factor * torch.acos(cosine.detach().clamp(-1, 1)) + angle_added)
        return moved + (cosine - cosine.detach())


class CosFace(CombinedMargin):
    """Target logit `s (cos(theta) - margin)` (arXiv 1801.09414); 0.4 on WebFace and Glint360K."""

    def __init__(self, margin: float = 0.4, scale: float = 64.0, conflict_threshold: float | None = None) -> None:
        check_number("margin", margin)
        super().__init__(scale, m3=margin, conflict_threshold=conflict_threshold)


class ArcFace(CombinedMargin):
    """Target logit `s cos(theta + margin)` (arXiv 1801.07698); 0.5 on MS1M.

    Not monotonic where theta + margin exceeds pi; arcface_torch does the same.
    """

    def __init__(
        self,
        margin: float = 0.5,
        scale: float = 64.0,
        conflict_threshold: float | None = None,
        gradient: str = "straight_through",
    ) -> None:
        check_number("margin", margin)
        super().__init__(scale, m2=margin, conflict_threshold=conflict_threshold, gradient=gradient)


def check_number(name: str, value: object, low: float = 0.0, high: float = math.inf) -> None:
    """Raise ValueError for a parameter of a margin that is no number from low to high."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        rule = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name}: {value!r}: must be a number {rule}")


def angle(cosine: Tensor) -> Tensor:
    """Return acos with a slope below 1000, so that the gradient at cos = +-1 is finite."""
    return _SafeAcos.apply(cosine)


class _SafeAcos(torch.autograd.Function):
    """acos of cosines in [-1, 1], or outside it by a rounding error."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, cosine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine)
        return torch.acos(cosine.clamp(-1, 1))

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        (cosine,) = ctx.saved_tensors
        return -gradient * (1 - cosine * cosine).clamp_min(1e-6).rsqrt()
