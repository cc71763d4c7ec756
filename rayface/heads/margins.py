"""What a margin softmax does to cosines before the softmax.

A head asks a margin for three things: the target's logit (a function of the target's cosine and the embedding's norm,
differentiated by autograd on vectors of one number per sample), what happens to the other cosines, and the range
these may take. The running statistics some margins keep are updated from the gathered global batch, so they are the
same on every rank and need no collective of their own.
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
        ValueError: scale or threshold out of range.
    """

    needs_target_cosines = False  # whether `bend_` depends on the sample's own target cosine

    def __init__(self, scale: float, conflict_threshold: float | None = None) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"head.scale {scale} must be a number > 0; 64 is usual")
        if conflict_threshold is not None and not 0 < conflict_threshold <= 1:
            raise ValueError(
                f"head.conflict_threshold {conflict_threshold} must be in (0, 1]; .4 is usual, null is no filter"
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
        """Update running statistics from the global batch: target cosines (B,) and norms (B,)."""

    def hardness(self, cosine: Tensor) -> Tensor | None:
        """Return what `bend_` needs to know of each sample, (B,) or (k, B), from its target cosine (B,).

        A loss whose logits are computed again later, when statistics have moved on, gets this tensor again.
        """
        return None

    def bend_(self, logits: Tensor, hardness: Tensor | None) -> Tensor | None:
        """Change the other classes' scaled cosines in place; return d(new)/d(old), or None where it is 1.

        Args:
            logits: (n, B), scale times cosine.
            hardness: what `hardness` returned.
        """
        return None

    def range(self) -> tuple[float, float]:
        """Return bounds of what `bend_` makes of a cosine in [-1, 1]; the softmax skips its max collective on them."""
        return -1.0, 1.0

    def state(self) -> dict[str, float]:
        """Return the running statistics by name."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:
        """Take statistics that `state` returned."""
        for name in self.state():
            setattr(self, name, float(state[name]))

    def logits(self, cosine: Tensor, labels: Tensor, norms: Tensor | None = None) -> Tensor:
        """Return all logits of a small problem, differentiable; the heads of large ones work chunk by chunk instead.

        Args:
            cosine: (B, C) of embeddings to class centers.
            labels: (B,) int64, column of each sample's own class.
            norms: (B,) of the raw embeddings, for the margins that use them.
        """
        norms = torch.ones_like(cosine[:, 0]) if norms is None else norms
        own = cosine.gather(1, labels[:, None]).squeeze(1)
        if torch.is_grad_enabled():
            self.observe(own.detach(), norms.detach())
        others = _Bend.apply(cosine, self, self.hardness(own.detach()))
        return others.scatter(1, labels[:, None], self.scale * self.target(own, norms)[:, None])


class _Bend(torch.autograd.Function):
    """Conflict filter and `bend_` on a whole matrix of cosines (B, C), with their gradient."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, cosine: Tensor, margin: Margin, hardness: Tensor | None
    ) -> Tensor:
        logits = cosine.detach() * margin.scale
        conflict = None
        if margin.conflict_threshold is not None:
            conflict = logits > margin.scale * margin.conflict_threshold
        slope = margin.bend_(logits.T, hardness)
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
            raise ValueError(f"head.gradient {gradient!r} must be one of {', '.join(GRADIENTS)}")
        if m1 < 0 or m2 < 0 or m3 < 0:
            raise ValueError(f"head.margin ({m1}, {m2}, {m3}) must not be negative")
        self.m1, self.m2, self.m3 = m1, m2, m3
        self.gradient = gradient

    def target(self, cosine: Tensor, norms: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return cos(m1 theta + m2) - m3, (B,)."""
        if self.m1 == 1.0 and self.m2 == 0.0:
            return cosine - self.m3
        return self.add_angle(cosine, self.m1, self.m2) - self.m3

    def add_angle(self, cosine: Tensor, factor: float, angle_added: float | Tensor) -> Tensor:
        """Return cos(factor theta + angle_added), (B,), with the gradient asked for."""
        if self.gradient == "exact":
            return torch.cos(factor * angle(cosine) + angle_added)
        moved = torch.cos(factor * torch.acos(cosine.detach().clamp(-1, 1)) + angle_added)
        return moved + (cosine - cosine.detach())


class CosFace(CombinedMargin):
    """Target logit `s (cos(theta) - margin)` (arXiv 1801.09414); .4 on WebFace and Glint360K."""

    def __init__(self, margin: float = 0.4, scale: float = 64.0, conflict_threshold: float | None = None) -> None:
        super().__init__(scale, m3=margin, conflict_threshold=conflict_threshold)


class ArcFace(CombinedMargin):
    """Target logit `s cos(theta + margin)` (arXiv 1801.07698); .5 on MS1M.

    Not mended where theta + margin exceeds pi, as in arcface_torch.
    """

    def __init__(
        self,
        margin: float = 0.5,
        scale: float = 64.0,
        conflict_threshold: float | None = None,
        gradient: str = "straight_through",
    ) -> None:
        super().__init__(scale, m2=margin, conflict_threshold=conflict_threshold, gradient=gradient)


def angle(cosine: Tensor) -> Tensor:
    """Return acos with a slope that stays below 1000, so that cos = +-1 gives no infinite gradient."""
    return _SafeAcos.apply(cosine)


class _SafeAcos(torch.autograd.Function):
    """acos for cosines in [-1, 1], rounding errors allowed for."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, cosine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine)
        return torch.acos(cosine.clamp(-1, 1))

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[no-untyped-def]
        (cosine,) = ctx.saved_tensors
        return -gradient * (1 - cosine * cosine).clamp_min(1e-6).rsqrt()
