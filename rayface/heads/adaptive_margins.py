"""Margins that depend on the sample or on running statistics: AdaFace, ElasticFace, MagFace, CurricularFace."""

import math

import torch
from torch import Tensor

from rayface.heads.margins import CombinedMargin, Margin, angle, check_number


class AdaFace(Margin):
    """Margin by image quality, estimated from the embedding's norm (arXiv 2204.00964, equations 14 and 15).

    With k = clip(h (|e| - mean) / std, -1, 1): target logit `s (cos(clip(theta - m k, 1e-3, pi - 1e-3)) - m (k + 1))`.
    Mean and standard deviation of the norms (clipped to [.001, 100]) are running averages over global batches (the
    first micro-batch of a step that has several); no gradient flows through them or through k.

    Args:
        h: slope of the margin in the normalised norm.
        momentum: weight of the newest batch in the running averages.
    """

    def __init__(
        self,
        margin: float = 0.4,
        scale: float = 64.0,
        h: float = 0.333,
        momentum: float = 0.01,
        conflict_threshold: float | None = None,
    ) -> None:
        super().__init__(scale, conflict_threshold)
        check_number("margin", margin)
        check_number("h", h)
        check_number("momentum", momentum, high=1)
        self.margin, self.h, self.momentum = margin, h, momentum
        self.norm_mean, self.norm_std = 20.0, 100.0

    def observe(self, cosine: Tensor, norms: Tensor) -> None:
        """Update the running mean and standard deviation of the norms."""
        clipped = norms.clamp(1e-3, 100)
        std = clipped.std().item() if len(norms) > 1 else 0.0
        self.norm_mean += self.momentum * (clipped.mean().item() - self.norm_mean)
        self.norm_std += self.momentum * (std - self.norm_std)

    def target(self, cosine: Tensor, norms: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the target's logit over the scale, (B,)."""
        clipped = norms.detach().clamp(1e-3, 100)
        quality = ((clipped - self.norm_mean) / (self.norm_std + 1e-3) * self.h).clamp(-1, 1)
        moved = (angle(cosine) - self.margin * quality).clamp(1e-3, math.pi - 1e-3)
        return torch.cos(moved) - self.margin * (quality + 1)

    def state(self) -> dict[str, float]:
        """Return the running mean and standard deviation of the norms."""
        return {"norm_mean": self.norm_mean, "norm_std": self.norm_std}


class ElasticFace(CombinedMargin):
    """ArcFace or CosFace with a random margin for each sample, N(margin, std) (arXiv 2109.09416, equations 4, 5).

    Args:
        kind: "arc" (defaults .5, .0125) or "cos" (defaults .35, .05).
    """

    def __init__(
        self,
        kind: str = "arc",
        margin: float | None = None,
        std: float | None = None,
        scale: float = 64.0,
        conflict_threshold: float | None = None,
        gradient: str = "exact",
    ) -> None:
        if kind not in ("arc", "cos"):
            raise ValueError(f"kind: {kind!r}: must be arc or cos")
        super().__init__(scale, conflict_threshold=conflict_threshold, gradient=gradient)
        default_margin, default_std = (0.5, 0.0125) if kind == "arc" else (0.35, 0.05)
        self.kind = kind
        self.margin = default_margin if margin is None else margin
        self.std = default_std if std is None else std
        check_number("margin", self.margin)
        check_number("std", self.std)

    def target(self, cosine: Tensor, norms: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the target's logit over the scale, (B,); margins are drawn from a CPU generator, or torch's own."""
        drawn = torch.normal(self.margin, self.std, cosine.shape, generator=generator, dtype=cosine.dtype)
        drawn = drawn.to(cosine.device)
        return self.add_angle(cosine, 1.0, drawn) if self.kind == "arc" else cosine - drawn


class MagFace(Margin):
    """Margin and regulariser by the embedding's norm a, clipped to [low, high] (arXiv 2103.06627, equations 2, 3).

    Target logit `s cos(theta + m(a))` with m linear from margin_low to margin_high (`cos(theta) - m sin(m)` where
    theta + m exceeds pi), plus the penalty `weight (1 / a + a / high^2)`. The gradient reaches the norm through both.
    """

    def __init__(
        self,
        scale: float = 64.0,
        low: float = 10.0,
        high: float = 110.0,
        margin_low: float = 0.45,
        margin_high: float = 0.8,
        weight: float = 35.0,
        conflict_threshold: float | None = None,
    ) -> None:
        super().__init__(scale, conflict_threshold)
        self.low, self.high = low, high
        self.margin_low, self.margin_high, self.weight = margin_low, margin_high, weight
        for name in ("low", "high", "margin_low", "margin_high", "weight"):
            check_number(name, getattr(self, name))
        if not 0 < low < high:
            raise ValueError(f"low: {low}: must be above 0 and below high, {high}; 10 and 110 are usual")

    def target(self, cosine: Tensor, norms: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the target's logit over the scale, (B,)."""
        slope = (self.margin_high - self.margin_low) / (self.high - self.low)
        margin = slope * (norms.clamp(self.low, self.high) - self.low) + self.margin_low
        theta = angle(cosine)
        beyond = theta + margin > math.pi
        return torch.where(beyond, cosine - margin * torch.sin(margin), torch.cos(theta + margin))

    def penalty(self, norms: Tensor) -> Tensor:
        """Return the regulariser that rewards large norms, (B,)."""
        clipped = norms.clamp(self.low, self.high)
        return self.weight * (1 / clipped + clipped / self.high**2)


class CurricularFace(Margin):
    """Hard negatives get a larger weight as training proceeds (arXiv 2004.00288, equations 4 to 9).

    Cosines c to other classes above cos(theta + m) become c (t + c), where t is the running average of the target
    cosines, newest batch included; other terms as ArcFace, with `cos(theta) - m sin(m)` where theta + m exceeds pi.
    """

    needs_target_cosines = True

    def __init__(
        self,
        margin: float = 0.5,
        scale: float = 64.0,
        momentum: float = 0.01,
        conflict_threshold: float | None = None,
    ) -> None:
        super().__init__(scale, conflict_threshold)
        check_number("margin", margin)
        check_number("momentum", momentum, high=1)
        self.margin, self.momentum = margin, momentum
        self.t = 0.0

    def observe(self, cosine: Tensor, norms: Tensor) -> None:
        """Update t."""
        self.t += self.momentum * (cosine.mean().item() - self.t)

    def sample_stats(self, cosine: Tensor) -> Tensor:
        """Return (2, B): cos(theta + m), above which a negative is hard, and the present t."""
        threshold = torch.cos(torch.acos(cosine.clamp(-1, 1)) + self.margin)
        return torch.stack([threshold, torch.full_like(threshold, self.t)])

    def modulate_negatives_(self, logits: Tensor, sample_stats: Tensor | None) -> Tensor | None:
        """Reweight the hard negatives."""
        assert sample_stats is not None
        threshold, t = sample_stats
        hard = logits > self.scale * threshold
        cosine = logits / self.scale
        logits.copy_(torch.where(hard, logits * (t + cosine), logits))
        return torch.where(hard, t + 2 * cosine, 1.0)

    def target(self, cosine: Tensor, norms: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the target's logit over the scale, (B,)."""
        theta = angle(cosine)
        beyond = theta + self.margin > math.pi
        return torch.where(beyond, cosine - self.margin * math.sin(self.margin), torch.cos(theta + self.margin))

    def range(self) -> tuple[float, float]:
        """Return -1 and the largest |c (t + c)|."""
        return -1.0, 1.0 + abs(self.t)

    def state(self) -> dict[str, float]:
        """Return t."""
        return {"t": self.t}
