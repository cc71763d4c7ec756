"""Benchmark of a head's step against its three matrix products alone."""

import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from rayface.bench.processes import check_device, in_processes, now
from rayface.bench.yardsticks import PlainHead, bare_products
from rayface.heads import CosFace, HeadSettings, PartialFC

WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class HeadBench:
    """Settings: steps of PartialFC with CosFace and SGD with momentum."""

    num_classes: int
    batch_size: int
    """Global batch size, a multiple of the number of workers."""
    sample_rate: float = 0.1
    dtype: str = "fp32"
    """Type of the matrix products: fp32 or bf16."""
    workers: int = 1
    steps: int = 5
    """Number of measured steps, after two to warm up; times are medians."""
    embedding_size: int = 512
    storage_dtype: str = "fp32"
    logit_memory: int = 512_000_000
    device: str = "cpu"
    """cpu, or cuda with one GPU per worker."""

    def check(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: one line.
        """
        if self.workers < 1 or self.steps < 1:
            raise ValueError(f"workers {self.workers} and steps {self.steps} must be at least 1")
        if self.batch_size < self.workers or self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of workers {self.workers}")
        check_device(self.device, self.workers)
        replace(self, embedding_size=1, device="cpu").build()

    def build(self) -> PartialFC:
        """Return one worker's part of the head."""
        return PartialFC(
            self.embedding_size,
            self.num_classes,
            CosFace(),
            sample_rate=self.sample_rate,
            compute_dtype=self.dtype,
            storage_dtype=self.storage_dtype,
            logit_memory=self.logit_memory,
            device=self.device,
        )


@dataclass(frozen=True, kw_only=True)
class HeadTimes:
    """Medians over the measured steps of one worker."""

    step_seconds: float
    loss_seconds: float
    """Time of the loss and the gradient of the embeddings."""
    update_seconds: float
    products_seconds: float
    """Time of the products for logits, embedding gradient and center gradient alone, at a worker's sizes."""
    ratio: float
    """Time of a step relative to its products alone; they are measured in alternating order."""
    peak_bytes: int
    """Peak resident memory, or GPU memory."""
    state_bytes: int
    """Bytes of centers and momentum."""


@dataclass(frozen=True, kw_only=True)
class PlainTimes:
    """Measurements of a straightforward head: gathered rows, full logits, dense gradient, torch's SGD."""

    step_seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """Settings and measurements of a head."""

    settings: HeadBench
    times: HeadTimes
    straightforward: PlainTimes | None

    def as_dict(self) -> dict[str, object]:
        """Return settings and measurements by name, for --json."""
        plain = self.straightforward
        return {**asdict(self.settings), **asdict(self.times), "straightforward": plain and asdict(plain)}


def bench_head(settings: HeadBench, *, straightforward: bool = False) -> HeadResult:
    """Measure steps of a head in new processes, one per worker.

    Args:
        straightforward: also measure a straightforward head, in another process. Its peak memory is about three times
            the storage.

    Raises:
        ValueError: invalid settings, one line.
    """
    settings.check()
    times = in_processes(_measure_ours, settings.workers, settings)
    plain = in_processes(_measure_straightforward, 1, replace(settings, workers=1)) if straightforward else None
    return HeadResult(settings=settings, times=times, straightforward=plain)


def bench_scaling(
    classes: Sequence[int], settings: HeadBench, *, sampled_rows: int, straightforward: bool = False
) -> list[HeadResult]:
    """Run `bench_head` for each number of classes, with `sampled_rows` sampled centers per step.

    Raises:
        ValueError: see `bench_head`; or more sampled rows than classes.
    """
    if not 0 < sampled_rows <= min(classes):
        raise ValueError(
            f"sampled_rows: {sampled_rows}: must be from 1 to the smallest number of classes, {min(classes)}"
        )
    # Slightly more than the exact rate, so that int(rate * count) is not rounded down below sampled_rows.
    rates = {count: min(1.0, (sampled_rows + 1e-3) / count) for count in classes}
    return [
        bench_head(replace(settings, num_classes=count, sample_rate=rate), straightforward=straightforward)
        for count, rate in rates.items()
    ]


def as_table(results: Sequence[HeadResult]) -> list[dict[str, str]]:
    """Return the rows of the printed table of several results."""
    return [
        {
            "classes": f"{found.settings.num_classes:,}",
            "rows": f"{int(found.settings.sample_rate * found.settings.num_classes):,}",
            "step s": f"{found.times.step_seconds:.3f}",
            "products s": f"{found.times.products_seconds:.3f}",
            "ratio": f"{found.times.ratio:.2f}",
            "peak GB": f"{found.times.peak_bytes / 1e9:.2f}",
            "state GB": f"{found.times.state_bytes / 1e9:.2f}",
        }
        for found in results
    ]


def _measure_ours(settings: HeadBench) -> HeadTimes:
    head = settings.build()

    def step() -> tuple[float, float]:
        embeddings, labels = _batch(settings)
        start = now(settings.device)
        head.loss(embeddings, labels).backward()
        middle = now(settings.device)
        head.step(0.1)
        return middle - start, now(settings.device) - middle

    for _ in range(WARM_UP):
        step()
    peak = peak_bytes(settings.device)  # before the products below allocate memory
    rows = max(1, int(len(head.centers) * settings.sample_rate))
    dtype = torch.bfloat16 if settings.dtype == "bf16" else torch.float32
    products = bare_products(rows, settings.embedding_size, settings.batch_size, dtype, settings.device)
    times, bare = [], []
    for _ in range(settings.steps):
        times.append(step())
        start = now(settings.device)
        products()
        bare.append(now(settings.device) - start)
    seconds = [sum(pair) for pair in times]
    state = [v for v in head.state().values() if isinstance(v, Tensor)]
    return HeadTimes(
        step_seconds=statistics.median(seconds),
        loss_seconds=statistics.median(loss for loss, _ in times),
        update_seconds=statistics.median(update for _, update in times),
        products_seconds=statistics.median(bare),
        ratio=statistics.median(seconds) / statistics.median(bare),
        peak_bytes=peak,
        state_bytes=sum(v.numel() * v.element_size() for v in state),
    )


def _batch(settings: HeadBench) -> tuple[Tensor, Tensor]:
    """Return this worker's random embeddings and labels."""
    shape = (settings.batch_size // settings.workers, settings.embedding_size)
    embeddings = torch.randn(shape, device=settings.device).requires_grad_()
    return embeddings, torch.randint(settings.num_classes, shape[:1], device=settings.device)


def _measure_straightforward(settings: HeadBench) -> PlainTimes:
    head = PlainHead(
        HeadSettings(
            embedding_size=settings.embedding_size,
            num_classes=settings.num_classes,
            margin=CosFace(),
            sample_rate=settings.sample_rate,
            compute_dtype=settings.dtype,
            device=settings.device,
        )
    )
    times = []
    for _ in range(WARM_UP + settings.steps):
        embeddings, labels = _batch(settings)
        start = now(settings.device)
        head.loss(embeddings, labels).backward()
        head.step(0.1)
        times.append(now(settings.device) - start)
    return PlainTimes(step_seconds=statistics.median(times[WARM_UP:]), peak_bytes=peak_bytes(settings.device))


def peak_bytes(device: str) -> int:
    """Return the peak resident memory of this process, or its peak GPU memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
