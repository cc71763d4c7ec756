"""F2C: a head whose class centers are in a pool of the identities that were seen last (arXiv 2105.10375)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from rayface.heads.base import Embed, Head, HeadSettings, HeadState
from rayface.heads.class_pool import ClassPool, Written
from rayface.heads.collectives import Collectives, Layout
from rayface.heads.margins import CosFace, Margin
from rayface.heads.momentum_costs import f2c_memory, f2c_sent, f2c_traffic
from rayface.heads.momentum_encoder import (
    check_momentum,
    check_plain_margin,
    momentum_encoder,
    prefixed_state,
    random_units,
    update_momentum_,
    with_gradients,
)
from rayface.heads.options import HeadOptions
from rayface.heads.partial_fc_checks import check_embeddings, check_labels
from rayface.heads.recent_columns import RecentColumns
from rayface.heads.shape import HeadMemory, HeadShape

# The share of the pool whose cosines an image of an identity outside the pool is pushed away from, within bounds.
NEAREST_SHARE, LEAST_NEAREST, MOST_NEAREST = 2e-4, 3, 10


@dataclass(frozen=True, kw_only=True)
class F2COptions(HeadOptions):
    """Settings of F2C."""

    pool_size: int = 8192
    """Identities in the class pool; the paper has 0.001 to 1 % of those in the data."""
    momentum: float = 0.99
    """Momentum of the gallery net."""


class F2C(Head):
    """Margin softmax over a dynamic class pool of Q identities; its cost does not depend on their number in the data.

    The trained backbone, the probe net P, is compared with embeddings of the gallery net G, whose parameters are a
    running average of P's. The pool has two rows of G's embeddings per column; a column belongs to an identity, and the
    least recently used one is given to a new identity. An identity that is written again fills its rows in turn.

    A loss makes two passes: first x to P and y to G, whose changes of the pool are undone, then y to P and x to G.
    In a pass, G's embeddings are written to the pool. P's are compared with row 0 of every column, and again with row
    1 of the columns whose identity was known when it was written in this pass, else row 0. For images whose identity is
    in the pool, the loss is the margin softmax over all columns; for the others, the mean of the largest cosines,
    clipped at 0. Each is a mean over its images of the global batch, and all of them are added.

    The pool is the same on all ranks. Collectives of a loss: one all-gather of labels and two of embeddings, one
    all-reduce of the loss.
    Memory: 2 Q x D numbers, the gallery net, logits (B_local, Q), and about 150 bytes a column on the host.

    Args:
        probe: the backbone; images (n, ...) -> raw embeddings (n, D).
        pool_size: Q.
        margin: without running statistics and penalty; None: CosFace(0.4) with scale 32.
        momentum: of the gallery net's average.
        seed: of the first rows of the pool, random directions.

    Attributes:
        gallery: the gallery net.

    Raises:
        ValueError: an argument out of its range.
    """

    num_classes = 0  # nothing is kept by class
    options_class = F2COptions
    usual_scale = 32.0
    backbone_passes, network_passes = 2, 2
    replicated = None
    stream = "pairs_and_images"

    def __init__(
        self,
        probe: nn.Module,
        *,
        embedding_size: int,
        pool_size: int,
        margin: Margin | None = None,
        momentum: float = 0.99,
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        _check_pool(pool_size)
        check_momentum(momentum)
        self.margin = CosFace(0.4, scale=32.0) if margin is None else margin
        check_plain_margin("f2c", self.margin)
        self.embedding_size, self.pool_size, self.momentum = embedding_size, pool_size, momentum
        self.probe, self.gallery = probe, momentum_encoder(probe)
        self.ranks = Collectives(process_group)
        rows = random_units((2, pool_size, embedding_size), seed, "pool", next(probe.parameters()))
        self._pool = ClassPool(rows)

    @classmethod
    def check(cls, settings: HeadSettings) -> None:
        """Refuse settings that `build` cannot work with."""
        assert isinstance(settings.options, F2COptions)
        _check_pool(settings.options.pool_size)
        check_momentum(settings.options.momentum)
        check_plain_margin("f2c", settings.margin)

    @classmethod
    def build(cls, settings: HeadSettings) -> "F2C":
        """Return the head of this rank, in the default process group."""
        assert isinstance(settings.options, F2COptions)
        assert settings.backbone is not None
        return cls(
            settings.backbone,
            embedding_size=settings.embedding_size,
            pool_size=settings.options.pool_size,
            margin=settings.margin,
            momentum=settings.options.momentum,
            seed=settings.seed,
        )

    @classmethod
    def memory(cls, shape: HeadShape) -> HeadMemory:
        """Return the bytes that a rank needs at the peak of a step."""
        return f2c_memory(shape, _columns(shape))

    @classmethod
    def macs(cls, shape: HeadShape) -> int:
        """Return the multiply-adds of the products with the pool, of two passes: cosines and their gradient."""
        return 2 * 2 * shape.rank_batch * shape.embedding_size * _columns(shape)

    @classmethod
    def traffic(cls, shape: HeadShape) -> int:
        """Return the bytes that a rank reads and writes in a step outside of products and of the backbone."""
        return f2c_traffic(shape, _columns(shape))

    @classmethod
    def sent(cls, shape: HeadShape) -> dict[str, float]:
        """Return the bytes that a rank sends in a step, by collective."""
        return f2c_sent(shape)

    def networks(self) -> dict[str, nn.Module]:
        """Return the gallery net."""
        return {"gallery": self.gallery}

    def start(self) -> None:
        """Let the gallery net begin as the backbone."""
        self.gallery.load_state_dict(self.probe.state_dict())

    def train_loss(self, embed: Embed, images: Tensor, labels: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the loss of pairs of images, half of them of one identity; see `Head.train_loss`."""
        return self.loss(images[0::2], images[1::2], labels[0::2], labels[1::2], counts, embed)

    @property
    def pool(self) -> Tensor:
        """The pool, (2, Q, D); live."""
        return self._pool.rows

    @property
    def columns(self) -> RecentColumns:
        """Which identity has which column."""
        return self._pool.columns

    def loss(  # type: ignore[override]  # samples are pairs of images, not embeddings
        self,
        x: Tensor,
        y: Tensor,
        x_labels: Tensor,
        y_labels: Tensor,
        counts: Sequence[int] | None = None,
        embed: Embed | None = None,
    ) -> Tensor:
        """Return the mean loss over the global batch, a scalar that is the same on every rank, and update the pool.

        Args:
            x, y: (n, ...) images.
            x_labels, y_labels: (n,) int64 identities of the images.
            counts: n of every rank; None: the same on all.
            embed: runs the backbone, as the training step does; None: a plain call.

        Raises:
            ValueError: wrong shapes or labels.
        """
        for labels in (x_labels, y_labels):
            check_labels(labels)
        if not len(x) == len(y) == len(x_labels) == len(y_labels):
            lengths = ", ".join(str(len(part)) for part in (x, y, x_labels, y_labels))
            raise ValueError(f"x, y, x_labels and y_labels of {lengths} rows: must be equal")
        layout = self.ranks.layout(len(x), counts)
        labels_x, labels_y = self._labels(x_labels, y_labels, layout)
        embed = embed or self._plain
        update_momentum_(self.gallery, self.probe, self.momentum)
        trial = self._pass(embed, (x, y), (labels_x, labels_y), layout, keep=False)
        kept = self._pass(embed, (y, x), (labels_y, labels_x), layout, keep=True)
        value = self.ranks.sum_(trial.value + kept.value)
        return with_gradients(value, [trial.raw, kept.raw], [trial.gradient, kept.gradient])

    def _plain(self, images: Tensor, net: nn.Module | None = None) -> Tensor:
        embeddings: Tensor = (self.probe if net is None else net)(images)
        return embeddings

    def _labels(self, x_labels: Tensor, y_labels: Tensor, layout: Layout) -> list[list[int]]:
        """Return the labels of the global batch on the host."""
        everyone = self.ranks.gather(torch.stack([x_labels, y_labels], dim=1), layout).T.tolist()
        smallest = min(map(min, everyone))
        if smallest < 0:
            raise ValueError(f"labels: {smallest} must not be negative")
        return everyone

    def _pass(
        self,
        embed: Embed,
        images: tuple[Tensor, Tensor],
        labels: tuple[list[int], list[int]],
        layout: Layout,
        *,
        keep: bool,
    ) -> "_Pass":
        """Write the gallery's embeddings of the second images, and compare the probe's of the first with the pool."""
        raw = embed(images[0])
        check_embeddings(raw, self.embedding_size)
        with torch.no_grad():
            own = F.normalize(embed(images[1], self.gallery).to(self.pool.dtype))
        written = self._pool.write(self.ranks.gather(own, layout), labels[1])
        columns = [self.columns.column_of(identity) for identity in labels[0]]
        with torch.autocast(raw.device.type, enabled=False):
            compared = self._compare(raw, columns, written, layout)
        if keep:
            self._pool.keep()
        else:
            self._pool.undo(written)
        return compared

    def _compare(self, raw: Tensor, columns: list[int], written: Written, layout: Layout) -> "_Pass":
        """Return this rank's part of the loss, and its gradient.

        Args:
            columns: of every image of the global batch; -1: not in the pool.
        """
        num_inside = sum(column >= 0 for column in columns)
        num_outside = len(columns) - num_inside
        own = torch.tensor(columns[layout.own], device=raw.device)
        leaf = raw.detach().to(self.pool.dtype).requires_grad_()
        value = leaf.new_zeros(())
        for cosine in self._pool.cosines(F.normalize(leaf), written):
            value = value + self._inside(cosine, own) / max(1, num_inside)
            value = value + self._outside(cosine, own) / max(1, num_outside)
        gradient = torch.zeros_like(leaf)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, leaf)
        return _Pass(raw, value.detach(), gradient * self.ranks.size)

    def _inside(self, cosine: Tensor, columns: Tensor) -> Tensor:
        """Return the sum of the margin softmax over the images whose identity is in the pool."""
        inside = (columns >= 0).nonzero().squeeze(1)
        targets = columns[inside]
        return F.cross_entropy(self.margin.logits(cosine[inside], targets), targets, reduction="sum")

    def _outside(self, cosine: Tensor, columns: Tensor) -> Tensor:
        """Return the sum over the other images of the mean of their largest cosines, clipped at 0."""
        nearest = min(max(int(NEAREST_SHARE * self.pool_size), LEAST_NEAREST), MOST_NEAREST, self.pool_size)
        outside = (columns < 0).nonzero().squeeze(1)
        return cosine[outside].topk(nearest, dim=1).values.clamp_min(0).mean(1).sum()

    def step(self, lr: float, *, grad_scale: float = 1.0) -> None:
        """Do nothing: a loss updates the pool, and the optimizer of the backbone the probe net."""

    def state(self) -> HeadState:
        """Return the live pool, columns and gallery net."""
        return {"pool": self.pool, **self.columns.tensors(), **prefixed_state("gallery", self.gallery)}

    def load_state(self, state: HeadState) -> None:
        """Load what `state` returned on any number of ranks."""
        super().load_state(state)
        self.columns.refresh()


@dataclass(frozen=True)
class _Pass:
    raw: Tensor  # (n, D) embeddings of the probe
    value: Tensor  # this rank's part of the mean over the global batch
    gradient: Tensor  # (n, D) of the whole loss, times the number of ranks


def _columns(shape: HeadShape) -> int:
    assert isinstance(shape.options, F2COptions)
    return shape.options.pool_size


def _check_pool(pool_size: int) -> None:
    if pool_size < 1:
        raise ValueError(f"head.options.pool_size: {pool_size}: must be at least 1; 1 % of the identities is usual")
