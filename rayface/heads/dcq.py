"""DCQ: a head whose class centers are the newest keys of a momentum encoder (arXiv 2105.11113)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from rayface.heads.base import Embed, Head, HeadSettings, HeadState
from rayface.heads.class_centers import inverse_norms
from rayface.heads.collectives import Collectives, Layout
from rayface.heads.margins import CosFace
from rayface.heads.momentum_costs import dcq_memory, dcq_sent, dcq_traffic
from rayface.heads.momentum_encoder import (
    check_momentum,
    momentum_encoder,
    prefixed_state,
    random_units,
    update_momentum_,
    with_gradients,
)
from rayface.heads.options import HeadOptions
from rayface.heads.partial_fc_checks import check_embeddings, check_labels
from rayface.heads.sampling import keyed_generator
from rayface.heads.shape import HeadMemory, HeadShape

NO_LABEL = -1
CHUNK_ROWS = 16384  # queue rows whose logits are computed at once
USUAL_QUEUE = 8192


@dataclass(frozen=True, kw_only=True)
class DCQOptions(HeadOptions):
    """Settings of DCQ."""

    queue_size: int | None = None
    """Keys in the queue, a multiple of the global batch. None: the multiple nearest to 8192."""
    momentum: float = 0.999
    """Momentum of the key encoder."""

    def queue_rows(self, batch_size: int) -> int:
        """Return K for a global batch."""
        return max(1, round(USUAL_QUEUE / batch_size)) * batch_size if self.queue_size is None else self.queue_size


class DCQ(Head):
    """Softmax over a queue of the K newest keys; its cost does not depend on the number of identities.

    A sample is two images of an identity. The trained backbone embeds the query image; the key encoder, whose
    parameters are a running average of the backbone's, embeds the key image. With cosines to the own key and to the
    queue, the loss is the cross-entropy of `s [q.k - m, q.queue]` against the first column, without the queue's rows
    of the same label. Then the keys of the global batch replace the oldest rows.
    A loss moves the key encoder, reads the queue and writes to it, in this order; `step` does nothing.

    The queue is the same on all ranks. Collectives of a loss: one all-to-all of the key images (the key encoder's
    batch statistics are of a random part of the global batch, other than that of the queries), one all-gather of keys
    and labels, one all-reduce of the loss.
    Memory: K x (D + 1) numbers, the key encoder, and logits of a chunk of the queue.

    Args:
        query: the backbone; images (n, ...) -> raw embeddings (n, D).
        queue_size: K, a multiple of the global batch.
        momentum: of the key encoder's average.
        margin: m, subtracted from the cosine to the own key.
        scale: s.
        seed: of the first rows of the queue, random directions without labels, and of the shuffled key images.
        batch_size: samples of the global batch, to check queue_size at once; None: each loss checks it.

    Attributes:
        key: the key encoder, to evaluate and to export.
        queue: (K, D) keys of length 1.
        queue_labels: (K,) int64; -1 for rows without a label, which are negatives of every sample.

    Raises:
        ValueError: an argument out of its range.
    """

    num_classes = 0  # nothing is kept by class
    options_class = DCQOptions
    usual_scale, usual_margin = 50.0, 0.3
    exported = "key"
    backbone_passes, network_passes = 1, 1
    replicated = None
    stream = "pairs"
    margin: CosFace

    def __init__(
        self,
        query: nn.Module,
        *,
        embedding_size: int,
        queue_size: int,
        momentum: float = 0.999,
        margin: float = 0.3,
        scale: float = 50.0,
        seed: int = 0,
        batch_size: int | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        check_momentum(momentum)
        check_queue(queue_size, batch_size or queue_size)
        self.queue_size, self.embedding_size, self.momentum, self.seed = queue_size, embedding_size, momentum, seed
        self.margin = CosFace(margin, scale)
        self.query, self.key = query, momentum_encoder(query)
        self.ranks = Collectives(process_group)
        self.step_count = self.next_row = 0
        weight = next(query.parameters())
        self.queue = random_units((queue_size, embedding_size), seed, "queue", weight)
        self.queue_labels = torch.full((queue_size,), NO_LABEL, device=weight.device)

    @classmethod
    def check(cls, settings: HeadSettings) -> None:
        """Refuse settings that `build` cannot work with."""
        assert isinstance(settings.options, DCQOptions)
        assert settings.batch_size is not None
        if not isinstance(settings.margin, CosFace):
            name = type(settings.margin).__name__.lower()
            raise ValueError(f"head.margin: {name}: dcq shifts the cosine to the own key: must be cosface")
        if (threshold := settings.margin.conflict_threshold) is not None:
            raise ValueError(f"head.conflict_threshold: {threshold}: dcq keeps no class centers: leave it out")
        check_momentum(settings.options.momentum)
        check_queue(settings.options.queue_rows(settings.batch_size), settings.batch_size)

    @classmethod
    def build(cls, settings: HeadSettings) -> "DCQ":
        """Return the head of this rank, in the default process group."""
        cls.check(settings)
        assert isinstance(settings.options, DCQOptions)
        assert isinstance(settings.margin, CosFace)
        assert settings.backbone is not None
        assert settings.batch_size is not None
        return cls(
            settings.backbone,
            embedding_size=settings.embedding_size,
            queue_size=settings.options.queue_rows(settings.batch_size),
            momentum=settings.options.momentum,
            margin=settings.margin.m3,
            scale=settings.margin.scale,
            seed=settings.seed,
        )

    @classmethod
    def memory(cls, shape: HeadShape) -> HeadMemory:
        """Return the bytes that a rank needs at the peak of a step."""
        return dcq_memory(shape, _queue_rows(shape), CHUNK_ROWS)

    @classmethod
    def macs(cls, shape: HeadShape) -> int:
        """Return the multiply-adds of two products of the rank's queries with the queue."""
        return 2 * shape.rank_batch * shape.embedding_size * _queue_rows(shape)

    @classmethod
    def traffic(cls, shape: HeadShape) -> int:
        """Return the bytes that a rank reads and writes in a step outside of products and of the backbone."""
        return dcq_traffic(shape, _queue_rows(shape))

    @classmethod
    def sent(cls, shape: HeadShape) -> dict[str, float]:
        """Return the bytes that a rank sends in a step, by collective."""
        return dcq_sent(shape)

    def networks(self) -> dict[str, nn.Module]:
        """Return the key encoder."""
        return {"key": self.key}

    def start(self) -> None:
        """Let the key encoder begin as the backbone."""
        self.key.load_state_dict(self.query.state_dict())

    def train_loss(self, embed: Embed, images: Tensor, labels: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Return the loss of pairs of images; see `Head.train_loss`."""
        return self.loss(images[0::2], images[1::2], labels[0::2], counts, embed)

    def loss(  # type: ignore[override]  # samples are pairs of images, not embeddings
        self,
        query_images: Tensor,
        key_images: Tensor,
        labels: Tensor,
        counts: Sequence[int] | None = None,
        embed: Embed | None = None,
    ) -> Tensor:
        """Return the mean loss over the global batch, a scalar that is the same on every rank, and update the queue.

        Args:
            query_images: (n, ...), for the backbone.
            key_images: (n, ...), other images of the same identities; the same where an identity has only one.
            labels: (n,) int64; negative: without a label.
            counts: n of every rank; None: the same on all.
            embed: runs the backbone, as the training step does; None: a plain call.

        Raises:
            ValueError: wrong shapes or labels, or a global batch that does not divide the queue.
        """
        check_labels(labels)
        if not len(query_images) == len(key_images) == len(labels):
            lengths = f"{len(query_images)}, {len(key_images)} and {len(labels)}"
            raise ValueError(f"query_images, key_images and labels of {lengths} rows: must be equal")
        layout = self.ranks.layout(len(labels), counts)
        check_queue(self.queue_size, sum(layout.counts))
        embed = embed or self._plain
        update_momentum_(self.key, self.query, self.momentum)
        keys, all_labels = self._keys(embed, key_images, labels, layout)
        raw = embed(query_images)
        check_embeddings(raw, self.embedding_size)
        with torch.autocast(raw.device.type, enabled=False):
            value = self._queue_loss(raw, keys[layout.own], labels, sum(layout.counts))
        self._enqueue(keys, all_labels)
        self.step_count += 1
        return value

    def _plain(self, images: Tensor, net: nn.Module | None = None) -> Tensor:
        embeddings: Tensor = (self.query if net is None else net)(images)
        return embeddings

    @torch.no_grad()
    def _keys(self, embed: Embed, images: Tensor, labels: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return keys (B, D) of length 1 and labels (B,) of the global batch."""
        if self.ranks.size == 1:
            return F.normalize(embed(images, self.key).to(self.queue.dtype)), labels
        parts = [part.to(images.device) for part in shuffled_parts(layout, self.seed, self.step_count)]
        own = embed(self.ranks.exchange(images, parts, layout), self.key)
        shuffled, labels = self.ranks.gather_labelled(F.normalize(own.to(self.queue.dtype)), labels, layout)
        keys = torch.empty_like(shuffled)
        keys[torch.cat(parts)] = shuffled
        return keys, labels

    def _queue_loss(self, raw: Tensor, keys: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        """Return the mean loss over the global batch; its gradient is this rank's, times the number of ranks."""
        scale, ranks = self.margin.scale, self.ranks
        with torch.no_grad():
            local = raw.to(self.queue.dtype)
            inverse = inverse_norms(local)
            unit = local * inverse
            positive = scale * (torch.linalg.vecdot(unit, keys) - self.margin.m3)
            log_sum, mean_center = self._softmax(unit, keys, labels, positive)
            value = ranks.sum_((log_sum - positive).sum()) / batch_size
            by_unit = (mean_center - keys) * (scale * ranks.size / batch_size)
            radial = torch.linalg.vecdot(by_unit, unit)[:, None]
            gradient = (by_unit - radial * unit) * inverse
        return with_gradients(value, [raw], [gradient])

    def _softmax(self, unit: Tensor, keys: Tensor, labels: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of the softmax's denominator (B,), and the mean of its centers (B, D)."""
        log_sum, mean_center = positive, keys
        for first in range(0, self.queue_size, CHUNK_ROWS):
            rows, row_labels = (part[first : first + CHUNK_ROWS] for part in (self.queue, self.queue_labels))
            logits = (unit * self.margin.scale) @ rows.T
            logits.masked_fill_((labels[:, None] == row_labels) & (row_labels >= 0), -torch.inf)
            before, log_sum = log_sum, torch.logaddexp(log_sum, logits.logsumexp(1))
            mean_center = mean_center * (before - log_sum).exp()[:, None]
            mean_center = mean_center.addmm(logits.sub_(log_sum[:, None]).exp_(), rows)
        return log_sum, mean_center

    def _enqueue(self, keys: Tensor, labels: Tensor) -> None:
        rows = slice(self.next_row, self.next_row + len(keys))
        self.queue[rows], self.queue_labels[rows] = keys, labels
        self.next_row = rows.stop % self.queue_size

    def step(self, lr: float, *, grad_scale: float = 1.0) -> None:
        """Do nothing: a loss updates the queue, and the optimizer of the backbone the query encoder."""

    def state(self) -> HeadState:
        """Return the live queue and key encoder, the next row of the queue and the number of losses."""
        return {
            "queue": self.queue,
            "queue_labels": self.queue_labels,
            **prefixed_state("key", self.key),
            "next_row": self.next_row,
            "step": self.step_count,
        }

    def load_state(self, state: HeadState) -> None:
        """Load what `state` returned on any number of ranks."""
        super().load_state(state)
        next_row, step = state["next_row"], state["step"]
        assert isinstance(next_row, int)
        assert isinstance(step, int)
        self.next_row, self.step_count = next_row, step


def _queue_rows(shape: HeadShape) -> int:
    assert isinstance(shape.options, DCQOptions)
    return shape.options.queue_rows(shape.batch_size)


def check_queue(queue_size: int, batch_size: int) -> None:
    """Raise ValueError for a queue that batches do not fill evenly."""
    if queue_size < 1:
        raise ValueError(f"head.options.queue_size: {queue_size}: must be above 0, a multiple of the global batch")
    if queue_size % batch_size:
        raise ValueError(f"head.options.queue_size: {queue_size}: must be a multiple of the global batch, {batch_size}")


def shuffled_parts(layout: Layout, seed: int, step: int) -> list[Tensor]:
    """Return the rows of the global batch whose keys each rank computes, ascending; random, the same on all ranks."""
    generator = keyed_generator("cpu", seed, "shuffle", step)
    order = torch.randperm(sum(layout.counts), generator=generator)
    return [part.sort().values for part in order.split(list(layout.counts))]
