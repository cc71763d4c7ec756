"""Loss that a margin softmax has before it has learnt anything, by its own margin."""

import math
from dataclasses import dataclass

import torch

from rayface.heads.margins import Margin

_IMAGES, _NEGATIVES = 256, 256  # drawn cosines; the mean loss is then within 2 % of its expectation


@dataclass(frozen=True, kw_only=True)
class ExpectedLoss:
    """Losses without information about the labels.

    Attributes:
        initial: of random class centers: for CosFace about `scale * m + ln(C - 1) + scale**2 / 2D`.
        uninformed: of the best embeddings that do not depend on the identity: all cosines are equal, for CosFace
            `ln(1 + (C - 1) exp(scale * m))`. Training on labels without meaning gets no lower by generalising.
        drop: by how much the margin lowers the target's cosine of 0.
    """

    initial: float
    uninformed: float
    drop: float


def expected_loss(margin: Margin, *, classes: float, embedding_size: int, norm: float) -> ExpectedLoss:
    """Return the losses of a softmax over `classes` classes; its random numbers are the same in every call.

    Args:
        classes: classes in the softmax of a step, the image's own included.
        embedding_size: D; cosines of random directions have the variance 1/D.
        norm: of the raw embeddings, which some margins use.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        cosine = torch.randn(_IMAGES, 1 + _NEGATIVES) / math.sqrt(embedding_size)
        initial, _ = _loss(margin, cosine.clamp(-1, 1), classes, norm)
        uninformed, target = _loss(margin, torch.zeros(_IMAGES, 2), classes, norm)
    return ExpectedLoss(initial=initial, uninformed=uninformed, drop=-target / margin.scale)


def _loss(margin: Margin, cosine: torch.Tensor, classes: float, norm: float) -> tuple[float, float]:
    """Return the mean loss and the mean logit of the target, the first column; the others stand for all negatives."""
    norms = torch.full(cosine.shape[:1], norm)
    logits = margin.logits(cosine, torch.zeros(len(cosine), dtype=torch.int64), norms)
    target, negatives = logits[:, 0], logits[:, 1:]
    if classes <= 1:
        return 0.0, float(target.mean())
    others = torch.logsumexp(negatives, dim=1) + math.log((classes - 1) / negatives.shape[1])
    loss = torch.logaddexp(others - target, torch.zeros_like(target))
    penalty = margin.penalty(norms)
    if penalty is not None:
        loss = loss + penalty
    return float(loss.mean()), float(target.mean())
