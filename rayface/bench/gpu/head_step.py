"""Part b: a head's step at the size of WebFace42M, against its bare matrix products and the straightforward way."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rayface.bench.gpu.case import Case, Kit, Measured
from rayface.bench.gpu.head_roads import RATES, ROADS, HeadRoad
from rayface.bench.gpu.measure import GB, Laps, PeakMemory, count_syncs, median_laps
from rayface.bench.gpu.training_step import LOGIT_MEMORY
from rayface.bench.yardsticks import bare_products
from rayface.heads import CosFace
from rayface.heads.base import Head, HeadSettings

WARM_UP, REPEATS = 3, 10


@dataclass(frozen=True, kw_only=True)
class HeadSizes:
    """WebFace42M's classes, and a batch of the preset."""

    num_classes: int = 2_059_906
    embedding_size: int = 512
    batch_size: int = 1024


MINI = HeadSizes(num_classes=3000, embedding_size=32, batch_size=16)


@dataclass(frozen=True, kw_only=True)
class HeadTimes(Measured):
    """Medians of the measured steps; the products are timed in turn with them."""

    step_ms: float
    loss_ms: float
    """With the embeddings' gradient."""
    update_ms: float
    products_ms: float
    ratio: float
    products_tflops: float
    peak_gb: float | None
    above_state_gb: float | None
    """The peak without centers and moments."""
    syncs: int | None
    """Times that the host waits for the device in a step."""
    sync_sites: str


def cases(kit: Kit) -> Iterator[Case]:
    """Yield every road at every rate, the first road first."""
    sizes = MINI if kit.mini else HeadSizes()
    roads = [road for road in ROADS if kit.device == "cuda" or not road.only_cuda]
    rounds = [(road, rate) for road in roads[:1] for rate in RATES]
    rounds += [(road, rate) for rate in RATES for road in roads[1:] if rate in road.rates]
    for road, rate in rounds:
        run = partial(measure, road, sizes, rate, kit.device)
        yield Case(name=f"r {rate:g}, {road.name}", run=run, seconds=road.seconds)


def measure(road: HeadRoad, sizes: HeadSizes, rate: float, device: str) -> HeadTimes:
    """Measure a head: memory and synchronisations of one step, then the times of several."""
    settings = HeadSettings(
        embedding_size=sizes.embedding_size,
        num_classes=sizes.num_classes,
        margin=CosFace(),
        sample_rate=rate,
        compute_dtype="bf16",
        logit_memory=LOGIT_MEMORY,
        device=device,
    )
    head, batches = road.build(settings), _batches(sizes, device)
    for _ in range(WARM_UP):
        _step(head, next(batches))
    peak = PeakMemory(device)
    _step(head, next(batches))
    peak_gb, state_gb = peak.gb, _state_gb(head, device)
    syncs = count_syncs(lambda: _step(head, next(batches)), device)
    rows = max(1, int(rate * sizes.num_classes))
    products = bare_products(rows, sizes.embedding_size, sizes.batch_size, torch.bfloat16, device)

    def in_turn(laps: Laps) -> None:
        _step(head, next(batches), laps)
        products()

    loss_ms, update_ms, products_ms = median_laps(in_turn, device, warm_up=1, repeats=REPEATS)
    operations = 6 * rows * sizes.embedding_size * sizes.batch_size
    return HeadTimes(
        step_ms=loss_ms + update_ms,
        loss_ms=loss_ms,
        update_ms=update_ms,
        products_ms=products_ms,
        ratio=(loss_ms + update_ms) / products_ms,
        products_tflops=operations / products_ms / 1e9,
        peak_gb=peak_gb,
        above_state_gb=None if peak_gb is None else peak_gb - state_gb,
        syncs=syncs.count,
        sync_sites=syncs.sites,
    )


def _step(head: Head, batch: tuple[Tensor, Tensor], laps: Laps | None = None) -> None:
    embeddings, labels = batch
    leaf = embeddings.detach().requires_grad_()
    head.prefetch(labels)
    head.loss(leaf, labels).backward()
    if laps is not None:
        laps.mark()
    head.step(0.1)
    if laps is not None:
        laps.mark()


def _batches(sizes: HeadSizes, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield drawn embeddings and labels on the device, a few batches over and over."""
    generator = torch.Generator().manual_seed(0)
    ready = []
    for _ in range(4):
        embeddings = torch.randn(sizes.batch_size, sizes.embedding_size, generator=generator)
        labels = torch.randint(sizes.num_classes, (sizes.batch_size,), generator=generator)
        ready.append((embeddings.to(device), labels.to(device)))
    while True:
        yield from ready


def _state_gb(head: Head, device: str) -> float:
    """Return the GB of centers and moments on the device."""
    tensors = [value for value in head.state().values() if isinstance(value, Tensor) and value.device.type == device]
    return sum(tensor.nbytes for tensor in tensors) / GB
