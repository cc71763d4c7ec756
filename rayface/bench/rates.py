"""Benchmark of matrix products, memory and the link between processes, for `rayface plan --rates`."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from rayface.bench.processes import check_device, in_processes, now

REPEATS = 7


@dataclass(frozen=True, kw_only=True)
class RatesBench:
    """Settings of a measurement of rates."""

    workers: int = 2
    """Number of concurrent processes, or GPUs; with one, no link is measured."""
    size: int = 2048
    """Side of the square matrices."""
    megabytes: int = 256
    """Size of the copied and all-reduced data; it should exceed the caches."""
    device: str = "cpu"


def bench_rates(settings: RatesBench) -> dict[str, float | str]:
    """Measure in new processes, medians of seven; all workers run concurrently, as in training.

    Returns:
        Names and units of plan.Rates: "gemm_tflops" (bf16) and "fp32_tflops" of one worker, "memory_bandwidth" (GB/s
        read and written by a copy), "link_bandwidth" (GB/s that a worker sends in a ring all-reduce; missing with one
        worker); and the settings.

    Raises:
        ValueError: sizes below 1, or a device that this machine does not have.
    """
    for name in ("workers", "size", "megabytes"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}: {getattr(settings, name)}: must be at least 1")
    check_device(settings.device, settings.workers)
    return {**asdict(settings), **in_processes(_measure, settings.workers, settings)}


def _measure(settings: RatesBench) -> dict[str, float]:
    size, device = settings.size, settings.device
    found = {}
    for name, dtype in (("gemm_tflops", torch.bfloat16), ("fp32_tflops", torch.float32)):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        found[name] = 2 * size**3 / 1e12 / _median(lambda: torch.mm(left, right, out=out), device)  # noqa: B023
    source = torch.ones(settings.megabytes * 250_000, device=device)
    target = torch.ones_like(source)
    found["memory_bandwidth"] = 2 * source.nbytes / 1e9 / _median(lambda: target.copy_(source), device)
    if (workers := settings.workers) > 1:
        sent = 2 * (workers - 1) / workers * source.nbytes / 1e9
        found["link_bandwidth"] = sent / _median(lambda: dist.all_reduce(source), device)
    return found


def _median(work: Callable[[], object], device: str) -> float:
    """Return the median seconds of a run, after one to warm up."""
    work()
    times = []
    for _ in range(REPEATS):
        if dist.is_initialized():
            dist.barrier()
        start = now(device)
        work()
        times.append(now(device) - start)
    return statistics.median(times)
