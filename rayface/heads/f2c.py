"""F2C: a head whose class centers are in a pool of the identities that were seen last (arXiv 2105.10375)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from rayface.heads.base import Head, HeadOptions, HeadSettings, HeadState
from rayface.heads.collectives import Collectives, Layout
from rayface.heads.margins import CosFace, Margin
from rayface.heads.momentum_encoder import Embed, momentum_encoder, prefixed_state, update_momentum_, with_gradients
from rayface.heads.partial_fc_checks import check_labels
from rayface.heads.recent_columns import RecentColumns
from rayface.heads.sampling import keyed_generator

# The share of the pool whose cosines an image of an identity outside the pool is pushed away from, within bounds.
NEAREST_SHARE, LEAST_NEAREST, MOST_NEAREST = 2e-4, 3, 10


USUAL_SHARE = 0.01  # of the identities, in the pool


@dataclass(frozen=True, kw_only=True)
class F2COptions(HeadOptions):
    """Settings of F2C."""

    pool_size: int | None = None
    """Identities in the class pool. None: 1 % of those in the data, but no fewer than a global batch has rows."""
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
    Memory: 2 Q x D numbers, the gallery net, logits (B_local, Q), and about 130 bytes a column on the host.

    Args:
        probe: the backbone; images (n, ...) -> raw embeddings (n, D).
        pool_size: Q.
        margin: without running statistics and penalty; None: CosFace(.4) with scale 32.
        momentum: of the gallery net's average.
        seed: of the first rows of the pool, random directions.

    Attributes:
        gallery: the gallery net.
        pool: (2, Q, D) embeddings of length 1.
        columns: which identity has which column.

    Raises:
        ValueError: an argument out of its range.
    """

    num_classes = 0  # nothing is kept by class
    options_class = F2COptions
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
        if not 0 <= momentum < 1:
            raise ValueError(f"head.options.momentum {momentum} must be in [0, 1); 0.99 is usual")
        if pool_size < 1:
            raise ValueError(f"head.options.pool_size {pool_size} must be at least 1; 1 % of the identities is usual")
        self.margin = CosFace(0.4, scale=32.0) if margin is None else margin
        if self.margin.state() or self.margin.penalty(torch.ones(1)) is not None:
            raise ValueError(
                f"head.margin {type(self.margin).__name__.lower()} depends on the norms of embeddings or on running "
                "statistics: f2c takes cosface, arcface or combined"
            )
        self.embedding_size, self.pool_size, self.momentum = embedding_size, pool_size, momentum
        self.probe, self.gallery = probe, momentum_encoder(probe)
        self.ranks = Collectives(process_group)
        self.columns = RecentColumns(pool_size)
        weight = next(probe.parameters())
        rows = torch.randn(2, pool_size, embedding_size, generator=keyed_generator("cpu", seed, "pool"))
        self.pool = F.normalize(rows.to(weight), dim=2)

    @classmethod
    def build(cls, settings: HeadSettings) -> "F2C":
        """Return the head of this rank, in the default process group."""
        options = settings.options
        assert isinstance(options, F2COptions)
        assert settings.backbone is not None
        return cls(
            settings.backbone,
            embedding_size=settings.embedding_size,
            pool_size=options.pool_size or max(math.ceil(USUAL_SHARE * settings.num_classes), settings.batch_size or 1),
            margin=settings.margin,
            momentum=options.momentum,
            seed=settings.seed,
        )

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
        embeddings: Tensor = (net or self.probe)(images)
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
        with torch.no_grad():
            own = F.normalize(embed(images[1], self.gallery).to(self.pool.dtype))
        written = self._write(self.ranks.gather(own, layout), labels[1])
        columns = [self.columns.column_of(identity) for identity in labels[0]]
        with torch.autocast(raw.device.type, enabled=False):
            done = self._compare(raw, columns, written, layout)
        if keep:
            self.columns.commit()
        else:
            self.columns.undo()
            self._rows[written.places] = written.overwritten
        return done

    @property
    def _rows(self) -> Tensor:
        return self.pool.view(2 * self.pool_size, -1)

    def _write(self, embeddings: Tensor, identities: list[int]) -> "_Written":
        """Write embeddings (B, D) in order."""
        newest: dict[int, int] = {}  # which row of the batch a row of the pool gets: the last one
        known: dict[int, bool] = {}
        for row, identity in enumerate(identities):
            use = self.columns.use(identity)
            newest[use.slot * self.pool_size + use.column] = row
            known[use.column] = use.known
        device = embeddings.device
        places, rows = torch.tensor([[*newest], [*newest.values()]], device=device)
        overwritten = self._rows[places]
        self._rows[places] = embeddings[rows]
        mixed = torch.tensor(
            [column for column, was_known in known.items() if was_known], dtype=torch.int64, device=device
        )
        return _Written(places, overwritten, mixed)

    def _compare(self, raw: Tensor, columns: list[int], written: "_Written", layout: Layout) -> "_Pass":
        """Return this rank's part of the loss, and its gradient.

        Args:
            columns: of every image of the global batch; -1: not in the pool.
        """
        num_inside = sum(column >= 0 for column in columns)
        num_outside = len(columns) - num_inside
        own = torch.tensor(columns[layout.own], device=raw.device)
        leaf = raw.detach().to(self.pool.dtype).requires_grad_()
        unit = F.normalize(leaf)
        first = unit @ self.pool[0].T
        second = first.index_copy(1, written.mixed, unit @ self.pool[1, written.mixed].T)
        value = leaf.new_zeros(())
        for cosine in (first, second):
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
class _Written:
    """What a pass wrote to the pool."""

    places: Tensor  # (m,) rows of the pool, both slots counted through
    overwritten: Tensor  # (m, D) what was there
    mixed: Tensor  # (k,) columns whose identity was known when it was last written


@dataclass(frozen=True)
class _Pass:
    raw: Tensor  # (n, D) embeddings of the probe
    value: Tensor  # this rank's part of the mean over the global batch
    gradient: Tensor  # (n, D) of the whole loss, times the number of ranks
