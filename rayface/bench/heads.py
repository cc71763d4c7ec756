"""Benchmark of heads beside each other: seconds and memory of a step for several numbers of identities."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from rayface.bench.head import peak_bytes
from rayface.bench.processes import check_device, in_processes, now
from rayface.heads import DCQ, F2C, CosFace, Head, PartialFC
from rayface.heads.recent_columns import RecentColumns

WARM_UP = 2
HEADS = {"partial_fc r 1": 1.0, "partial_fc r .1": 0.1, "dcq": None, "f2c": None}
"""Measured heads, with their sample rate."""


@dataclass(frozen=True, kw_only=True)
class HeadsBench:
    """Settings: steps of a head on a backbone of one D x D matrix, which adds little to them."""

    num_classes: int
    head: str = "partial_fc r 1"
    batch_size: int = 128
    """Images of PartialFC, pairs of the others."""
    columns: int = 8192
    """Keys in the queue of DCQ, identities in the pool of F2C."""
    embedding_size: int = 512
    steps: int = 5
    """Number of measured steps, after two to warm up; times are medians."""
    device: str = "cpu"
    most_bytes: int = 4 * 2**30
    """Heads with more state are not measured."""

    @property
    def state_bytes(self) -> int:
        """Bytes of PartialFC's centers and momentum in fp32; 0 for the others, whose state does not grow."""
        return 2 * 4 * self.num_classes * self.embedding_size if HEADS[self.head] is not None else 0

    def check(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: one line.
        """
        check_device(self.device, 1)
        if min(self.num_classes, self.batch_size, self.embedding_size, self.steps) < 1:
            raise ValueError("num_classes, batch_size, embedding_size and steps must be at least 1")
        if self.columns % self.batch_size or self.columns < 1:
            raise ValueError(f"columns: {self.columns}: must be a multiple of batch_size {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class HeadCost:
    """Measurements of one head; None where it was not measured."""

    head: str
    num_classes: int
    state_bytes: int
    """Bytes of its tensors: centers and momentum, or queue or pool and the second network."""
    step_seconds: float | None = None
    peak_bytes: int | None = None
    """Peak resident memory of the process, or GPU memory."""
    lru_seconds: float | None = None
    """Time of F2C's least-recently-used map alone: the uses and look-ups of both passes, and the undo."""

    def row(self) -> dict[str, str]:
        """Return a row of the printed table."""
        return {
            "identities": f"{self.num_classes:,}",
            "head": self.head,
            "step ms": "-" if self.step_seconds is None else f"{self.step_seconds * 1e3:.1f}",
            "state MB": f"{self.state_bytes / 1e6:,.1f}",
            "peak MB": "-" if self.peak_bytes is None else f"{self.peak_bytes / 1e6:,.0f}",
            "lru ms": "" if self.lru_seconds is None else f"{self.lru_seconds * 1e3:.2f}",
        }


def bench_heads(settings: HeadsBench, classes: Sequence[int]) -> list[HeadCost]:
    """Measure every head for every number of identities, each in a new process.

    Raises:
        ValueError: invalid settings, one line.
    """
    found = []
    for num_classes in classes:
        for head in HEADS:
            case = replace(settings, num_classes=num_classes, head=head)
            case.check()
            if case.state_bytes > settings.most_bytes:
                found.append(HeadCost(head=head, num_classes=num_classes, state_bytes=case.state_bytes))
            else:
                found.append(in_processes(_measure, 1, case))
    return found


def as_dicts(found: Sequence[HeadCost]) -> list[dict[str, object]]:
    """Return the measurements by name, for --json."""
    return [asdict(cost) for cost in found]


def _measure(settings: HeadsBench) -> HeadCost:
    net = nn.Linear(settings.embedding_size, settings.embedding_size, bias=False).to(settings.device)
    head = _build(settings, net)
    seconds = []
    for _ in range(WARM_UP + settings.steps):
        images, labels = _batch(settings, head)
        start = now(settings.device)
        head.train_loss(lambda images, other=None: (other or net)(images), images, labels).backward()
        head.step(0.1)
        seconds.append(now(settings.device) - start)
    peak = peak_bytes(settings.device)
    return HeadCost(
        head=settings.head,
        num_classes=settings.num_classes,
        state_bytes=sum(value.nbytes for value in head.state().values() if isinstance(value, Tensor)),
        step_seconds=statistics.median(seconds[WARM_UP:]),
        peak_bytes=peak,
        lru_seconds=_lru_seconds(settings) if isinstance(head, F2C) else None,
    )


def _build(settings: HeadsBench, net: nn.Module) -> Head:
    size, rate = settings.embedding_size, HEADS[settings.head]
    if rate is not None:
        return PartialFC(size, settings.num_classes, CosFace(), sample_rate=rate, device=settings.device)
    if settings.head == "dcq":
        return DCQ(net, embedding_size=size, queue_size=settings.columns)
    return F2C(net, embedding_size=size, pool_size=settings.columns)


def _batch(settings: HeadsBench, head: Head) -> tuple[Tensor, Tensor]:
    """Return random images, which are embeddings here, and labels; of DCQ and of half of F2C's rows, pairs."""
    rows = settings.batch_size * head.images_per_row
    images = torch.randn(rows, settings.embedding_size, device=settings.device)
    labels = torch.randint(settings.num_classes, (rows,), device=settings.device)
    if head.stream == "pairs":
        labels[1::2] = labels[0::2]
    if head.stream == "pairs_and_images":
        labels[1 : rows // 2 : 2] = labels[0 : rows // 2 : 2]
    return images, labels


def _lru_seconds(settings: HeadsBench) -> float:
    """Return the seconds of a step's uses and its undo, in a full map."""
    columns, seconds = RecentColumns(settings.columns), []
    for identity in range(settings.columns):
        columns.use(identity)
    columns.commit()
    for _ in range(WARM_UP + settings.steps):
        trial, kept = torch.randint(settings.num_classes, (2, settings.batch_size)).tolist()
        start = now("cpu")
        for identity in trial:
            columns.use(identity)
        for identity in kept:
            columns.column_of(identity)
        columns.undo()
        for identity in kept:
            columns.use(identity)
        for identity in trial:
            columns.column_of(identity)
        columns.commit()
        seconds.append(now("cpu") - start)
    return statistics.median(seconds[WARM_UP:])
