"""Rates and memory of the CPU workers that a run would have on this machine, measured in a few seconds."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from rayface.backbones import build_backbone
from rayface.config import Config
from rayface.machine import num_cpus
from rayface.plan.memory import Job

_REPEATS = 3
_PRODUCT = 768  # side of the matrices
_COPIED = 64_000_000  # bytes, more than the caches
_MACS = 4e9  # multiply-adds of a measured forward pass, about
LINK = 1.0  # GB/s, assumed: gloo over the loopback of a machine


def runs_here(config: Config) -> bool:
    """Return whether `rayface train` would train on CPUs of this machine: no cluster, and no GPU in it or wanted."""
    elsewhere = config.cluster.address or os.environ.get("RAY_ADDRESS")
    device = config.train.device
    return not elsewhere and (device == "cpu" or (device == "auto" and not torch.cuda.is_available()))


def measure_rates(config: Config, job: Job) -> dict[str, float]:
    """Measure the fields of plan.Rates but for the link, for one of the job's workers while all of them run.

    Runs in this process with the threads that a worker has; a machine with fewer CPUs than workers shares them out.
    Includes one real step of the backbone, from which its efficiency follows.
    """
    threads = max(1, num_cpus() // job.num_workers)
    share = min(1.0, num_cpus() / (job.num_workers * threads))
    with _threads(threads):
        products = {dtype: share * 2 * _PRODUCT**3 / 1e12 / _product_seconds(dtype) for dtype in _DTYPES}
        source = torch.ones(_COPIED // 4)
        target = torch.ones_like(source)
        copied = 2 * source.nbytes / 1e9 / _median(lambda: target.copy_(source))
        backbone = share * _backbone_tflops(config, job)
    kind = torch.bfloat16 if job.bf16 else torch.float32
    products[kind] = max(products[kind], backbone)  # the efficiency is at most 1
    return {
        "gemm_tflops": products[torch.bfloat16],
        "fp32_tflops": products[torch.float32],
        "memory_bandwidth": copied / job.num_workers,
        "backbone_efficiency": backbone / products[kind],
    }


_DTYPES = (torch.bfloat16, torch.float32)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _product_seconds(dtype: torch.dtype) -> float:
    left, right = (torch.randn(_PRODUCT, _PRODUCT).to(dtype) for _ in range(2))
    return _median(lambda: left @ right)


def _backbone_tflops(config: Config, job: Job) -> float:
    """Return the 10^12 operations per second of forward and backward passes of the backbone."""
    images = max(2, min(job.images, int(_MACS / job.net.macs)))
    net = build_backbone(
        config.backbone.name,
        embedding_size=config.backbone.embedding_size,
        image_size=job.image_size,
        width=config.backbone.width,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = torch.randn(images, 3, job.image_size, job.image_size).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.bf16):
            net(batch).float().sum().backward()

    return 2 * 3 * job.net.macs * images / 1e12 / _median(step)


def _median(work: Callable[[], object]) -> float:
    """Return the median seconds of a run, after one to warm up."""
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
