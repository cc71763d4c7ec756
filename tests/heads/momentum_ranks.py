"""DCQ and F2C and their oracles, trained for some steps on the same batches by any number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from rayface.heads import DCQ, F2C, CosFace, Head, dcq
from rayface.heads.dcq import shuffled_parts
from tests.heads.momentum_oracle import FEATURES, WIDTH, PlainDCQ, PlainF2C, small_net, split
from tests.ranks import run_ranks

STEPS = 50


@dataclass(frozen=True)
class Trained:
    """Losses (STEPS,), gradients (STEPS, parameters) and tensors of the head at the end, of every rank the same."""

    losses: Tensor
    gradients: Tensor
    state: dict[str, Tensor]
    seen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Batch:
    """Two images of every row of a global batch, and their labels."""

    x: Tensor
    y: Tensor
    x_labels: Tensor
    y_labels: Tensor

    def part(self, rows: slice) -> "Batch":
        return Batch(self.x[rows], self.y[rows], self.x_labels[rows], self.y_labels[rows])


def batches(rows: int, *, pairs: bool) -> Iterator[Batch]:
    """Return random batches; with pairs, both images of a row are of one identity."""
    generator = torch.Generator().manual_seed(rows)
    for step in range(STEPS):
        x, y = torch.randn(2, rows, FEATURES, generator=generator, dtype=torch.float64)
        labels = torch.randint(12, (2, rows), generator=generator)  # some repeated, some in the pool or queue
        if step % 5 == 1:
            labels += 100 * step  # none has been seen
        if step % 5 == 3:
            labels[:] = labels[0, :2].repeat(rows)[:rows]  # two identities
        if step % 5 == 4:
            labels[0] += 1000  # no row's first image is of an identity that is in the pool
        yield Batch(x, y, labels[0], labels[0 if pairs or step % 5 == 0 else 1])


def random_rows(*shape: int) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return F.normalize(rows, dim=-1)


def build(kind: str, net: nn.Module, rows: int) -> Head:
    """Return the head of this rank."""
    if kind == "dcq":
        head = DCQ(net, embedding_size=WIDTH, queue_size=3 * rows, momentum=0.9, margin=0.3, scale=20.0)
        head.queue.copy_(random_rows(3 * rows, WIDTH))
        return head
    pool = F2C(net, embedding_size=WIDTH, pool_size=9, margin=CosFace(0.4, 8.0), momentum=0.8)
    pool.pool.copy_(random_rows(2, 9, WIDTH))
    return pool


def train_oracle(kind: str, rows: int, ranks: int) -> Trained:
    """Train by the plain definition; batch statistics are those of the ranks' rows."""
    net, parts = small_net(), split(rows, ranks)
    if kind == "dcq":
        plain_dcq = PlainDCQ(net, [(row, None) for row in random_rows(3 * rows, WIDTH)], 0.9, 0.3, 20.0)
    else:
        pool = random_rows(2, 9, WIDTH)
        plain_f2c = PlainF2C(net, [[pool[0, q], pool[1, q]] for q in range(9)], 0.8, 0.4, 8.0)
    losses, gradients = [], []
    for step, batch in enumerate(batches(rows, pairs=kind == "dcq")):
        if kind == "dcq":
            layout = dcq.Layout(tuple(part.stop - part.start for part in parts), 0)
            key_parts = shuffled_parts(layout, 0, step) if ranks > 1 else [torch.arange(rows)]
            value = plain_dcq.loss(batch.x, batch.y, batch.x_labels, parts, key_parts)
        else:
            value = plain_f2c.loss(batch.x, batch.y, batch.x_labels, batch.y_labels, parts)
        losses.append(value.detach())
        gradients.append(update(net, value))
    if kind == "dcq":
        state = {"queue": torch.stack([key for key, _ in plain_dcq.queue])} | parameters("key", plain_dcq.key)
        return Trained(torch.stack(losses), torch.stack(gradients), state)
    state = {"pool": torch.stack([torch.stack([slots[i] for slots in plain_f2c.pool]) for i in (0, 1)])}
    state |= parameters("gallery", plain_f2c.gallery)
    return Trained(torch.stack(losses), torch.stack(gradients), state, frozenset(plain_f2c.seen))


def train(kind: str, rows: int, rank: int, ranks: int) -> Trained:
    """Train this rank's part by the head."""
    net, parts = small_net(), split(rows, ranks)
    head = build(kind, net, rows)
    counts = [part.stop - part.start for part in parts]
    losses, gradients = [], []
    for batch in batches(rows, pairs=kind == "dcq"):
        own = batch.part(parts[rank])
        if isinstance(head, DCQ):
            value = head.loss(own.x, own.y, own.x_labels, counts)
        else:
            assert isinstance(head, F2C)
            value = head.loss(own.x, own.y, own.x_labels, own.y_labels, counts)
        losses.append(value.detach())
        gradients.append(update(net, value))
    tensors = {name: value.clone() for name, value in head.state().items() if isinstance(value, Tensor)}
    return Trained(torch.stack(losses), torch.stack(gradients), tensors)


def parameters(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.detach() for name, value in net.named_parameters()}


def update(net: nn.Module, value: Tensor) -> Tensor:
    """Take a step of SGD with the mean gradient of the ranks, as data-parallel training does; return the gradient."""
    net.zero_grad()
    value.backward()
    gradient = torch.cat([p.grad.view(-1) for p in net.parameters()])
    if dist.is_initialized():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    with torch.no_grad():
        vector = torch.cat([p.view(-1) for p in net.parameters()]) - 0.05 * gradient
        nn.utils.vector_to_parameters(vector, net.parameters())
    return gradient


def train_on_ranks(folder: Path, rows: int, ranks: int) -> dict[str, list[Trained]]:
    """Return what each rank's heads have become, by kind."""
    if ranks == 1:
        return {kind: [train(kind, rows, 0, 1)] for kind in ("dcq", "f2c")}
    run_ranks(_rank_main, (rows, ranks, str(folder)), ranks)
    parts = [torch.load(folder / f"out.{rank}", weights_only=True) for rank in range(ranks)]
    return {kind: [Trained(**part[kind]) for part in parts] for kind in ("dcq", "f2c")}


def _rank_main(rank: int, rows: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    done = {kind: vars(replace(train(kind, rows, rank, ranks), seen=())) for kind in ("dcq", "f2c")}
    torch.save(done, Path(folder) / f"out.{rank}")
