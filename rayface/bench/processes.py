"""New processes of one process group to measure in, and a clock that synchronises with the device."""

import tempfile
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class OnDevice(Protocol):
    """Settings of a measurement."""

    @property
    def device(self) -> str:
        """Device of the workers: cpu or cuda."""


Settings = TypeVar("Settings", bound=OnDevice)
Result = TypeVar("Result")


def check_device(device: str, workers: int) -> None:
    """Raise ValueError, one line, if the device is unknown or missing for some of the workers."""
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: {device!r}: must be cpu or cuda")
    if device == "cuda" and workers > torch.cuda.device_count():
        raise ValueError(
            f"device: cuda: this machine has {torch.cuda.device_count()} GPUs that torch can use, and must have one "
            f"for each of {workers} workers: use device cpu or fewer workers"
        )


def in_processes(work: Callable[[Settings], Result], count: int, settings: Settings) -> Result:
    """Run work in new processes of one group, with the threads divided among them; return rank 0's result."""
    context = mp.get_context("spawn")
    answers: SimpleQueue[Result] = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        threads = max(1, torch.get_num_threads() // count)
        mp.spawn(_worker, (count, f"{folder}/meet", threads, work, settings, answers), nprocs=count)
    return answers.get()


def _worker(
    rank: int,
    count: int,
    meeting: str,
    threads: int,
    work: Callable[[Settings], Result],
    settings: Settings,
    answers: "SimpleQueue[Result]",
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(rank)
    if settings.device == "cuda":
        torch.cuda.set_device(rank)
    if count > 1:
        backend = "nccl" if settings.device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=Path(meeting).as_uri(), rank=rank, world_size=count)
    found = work(settings)
    if rank == 0:
        answers.put(found)
    if count > 1:
        dist.destroy_process_group()


def now(device: str) -> float:
    """Return the time in seconds, after the device has finished all queued work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
