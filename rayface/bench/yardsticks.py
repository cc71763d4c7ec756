"""Baselines of a head's step: its three matrix products alone, and a straightforward head."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from rayface.heads.base import Head, HeadSettings, HeadState
from rayface.heads.margins import Margin


def bare_products(rows: int, size: int, batch: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """Return the products of logits, embedding gradient and center gradient, with all memory touched beforehand."""
    centers = torch.randn(rows, size, device=device, dtype=dtype)
    embeddings = torch.randn(batch, size, device=device, dtype=dtype)
    logits = torch.zeros(batch, rows, dtype=dtype, device=device)
    by_embedding, by_center = torch.zeros_like(embeddings), torch.zeros_like(centers)

    def run() -> None:
        torch.mm(embeddings, centers.T, out=logits)
        torch.mm(logits, centers, out=by_embedding)
        torch.mm(logits.T, embeddings, out=by_center)

    run()
    return run


class PlainHead(Head):
    """Straightforward head: gathered rows, full logits, cross entropy, a dense gradient and torch's SGD.

    Args:
        margin: a margin like CosFace's, a constant subtracted from the target's cosine.
    """

    def __init__(self, settings: HeadSettings) -> None:
        self.margin, self.num_classes = settings.margin, settings.num_classes
        self._sample_rate, self._bf16 = settings.sample_rate, settings.compute_dtype == "bf16"
        shape = (settings.num_classes, settings.embedding_size)
        self.centers = torch.randn(shape, device=settings.device).mul_(0.01).requires_grad_()
        self._optimizer = torch.optim.SGD(
            [self.centers], lr=0.1, momentum=settings.momentum, weight_decay=settings.weight_decay
        )

    @classmethod
    def build(cls, settings: HeadSettings) -> Self:
        """Return the head."""
        return cls(settings)

    def loss(self, embeddings: Tensor, labels: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the mean loss."""
        used, places = self._rows(labels)
        with torch.autocast(embeddings.device.type, torch.bfloat16, enabled=self._bf16):
            cosine = F.linear(F.normalize(embeddings), F.normalize(used))
        return F.cross_entropy(_logits_(cosine.float(), places, self.margin), places)

    def _rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the used centers, and the indices of the targets in them."""
        if self._sample_rate == 1:
            return self.centers, labels
        scores = torch.rand(self.num_classes, device=labels.device)
        scores[labels] = 2
        rows = scores.topk(int(self._sample_rate * self.num_classes)).indices.sort().values
        return self.centers[rows], torch.searchsorted(rows, labels)

    def step(self, lr: float, *, grad_scale: float = 1.0) -> None:
        """Update all centers."""
        self._optimizer.param_groups[0]["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state(self) -> HeadState:
        """Return centers and momentum."""
        buffer = self._optimizer.state.get(self.centers, {}).get("momentum_buffer")
        return {"centers": self.centers.detach(), **({} if buffer is None else {"momentum": buffer}), "margin": {}}


def _logits_(cosine: Tensor, places: Tensor, margin: Margin) -> Tensor:
    """Turn cosines (B, n) into logits in place: the margin on the targets, times the scale."""
    samples = torch.arange(len(places), device=places.device)
    own = cosine.detach()[samples, places]
    change = margin.target(own, torch.ones_like(own)) - own
    return cosine.index_put_((samples, places), change, accumulate=True).mul_(margin.scale)
