"""What this machine reaches in matrix products, memory and the link between processes, for `rayface plan --rates`."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from rayface.bench.processes import check_device, in_processes, now

REPEATS = 7


def bench_rates(*, workers: int = 2, size: int = 2048, megabytes: int = 256, device: str = "cpu") -> dict[str, Any]:
    """Measure in fresh processes, medians of seven; all workers work at the same time, as in training.

    Args:
        workers: processes, or GPUs; one has no link to measure.
        size: of the square matrices.
        megabytes: of what is copied and of what is reduced over the link; should exceed the caches.
    Returns:
        names and units of plan.Rates: "gemm_tflops" (bf16) and "fp32_tflops" of one worker, "memory_bandwidth" (GB/s
        read and written by a copy), "link_bandwidth" (GB/s a worker sends in a ring all-reduce; left out with one
        worker); and the arguments.
    Raises:
        ValueError: sizes that cannot be, or a device that is not there.
    """
    for name, value in (("workers", workers), ("size", size), ("megabytes", megabytes)):
        if value < 1:
            raise ValueError(f"--{name}: {value}: must be at least 1")
    check_device(device, workers)
    settings = {"workers": workers, "size": size, "megabytes": megabytes, "device": device}
    return {**settings, **in_processes(_measure, workers, settings)}


def _measure(settings: dict[str, Any]) -> dict[str, float]:
    size, device = settings["size"], settings["device"]
    found = {}
    for name, dtype in (("gemm_tflops", torch.bfloat16), ("fp32_tflops", torch.float32)):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        found[name] = 2 * size**3 / 1e12 / _median(lambda: torch.mm(left, right, out=out), device)  # noqa: B023
    source = torch.ones(settings["megabytes"] * 250_000, device=device)
    target = torch.ones_like(source)
    found["memory_bandwidth"] = 2 * source.nbytes / 1e9 / _median(lambda: target.copy_(source), device)
    if (workers := settings["workers"]) > 1:
        sent = 2 * (workers - 1) / workers * source.nbytes / 1e9
        found["link_bandwidth"] = sent / _median(lambda: dist.all_reduce(source), device)
    return found


def _median(work: Callable[[], Any], device: str) -> float:
    """Seconds of one run, after one to warm up."""
    work()
    times = []
    for _ in range(REPEATS):
        if dist.is_initialized():
            dist.barrier()
        start = now(device)
        work()
        times.append(now(device) - start)
    return statistics.median(times)
