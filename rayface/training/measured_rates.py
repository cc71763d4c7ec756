"""Rates of a run's ranks, measured before the first step: of the network between them and of matrix products."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from rayface.training.distributed import World
from rayface.training.recovery.interrupt import ThreadedCall

_REDUCED_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
_PRODUCT_SIDE = {"cpu": 768, "cuda": 8192}
_MARGIN_SECONDS = 10.0  # for an all-reduce that gives up by itself, and says why


def all_reduce_bandwidth(world: World, timeout: float) -> float:
    """Return the GB/s that a rank sends in a ring all-reduce, the best of four after one to open connections.

    Raises:
        TimeoutError: the first one does not end in time; the message says why, if anything is known.
    """
    count = _REDUCED_BYTES[world.device.type] // 4
    buffer = torch.zeros(count, device=world.device)
    _open_connections(world, buffer, timeout)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        dist.all_reduce(buffer)
        _synchronize(world)
        seconds.append(time.perf_counter() - start)
    fastest = torch.tensor([min(seconds)], dtype=torch.float64, device=world.device)
    dist.all_reduce(fastest, op=dist.ReduceOp.MAX)
    return 2 * (world.size - 1) / world.size * 4 * count / float(fastest) / 1e9


def _open_connections(world: World, buffer: torch.Tensor, timeout: float) -> None:
    """Run the first all-reduce, which opens the connections between the ranks.

    In a thread: NCCL opens them before it returns something to wait for, and tries for ever where packets are dropped.
    """

    def reduce() -> None:
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
        dist.all_reduce(buffer, async_op=True).wait(timedelta(seconds=timeout))
        _synchronize(world)

    call = ThreadedCall(reduce, "rayface-all-reduce")
    call.start()
    if not call.done.wait(timeout + _MARGIN_SECONDS):
        raise TimeoutError("it opens no connection")
    for error in call.failures:
        if not isinstance(error, RuntimeError) or "time" not in str(error).lower():
            raise error  # a worker died, which Ray Train handles
        raise TimeoutError(" ".join(str(error).split())[:200]) from error


def product_tflops(world: World, *, bf16: bool) -> float:
    """Return the TFLOPS of a square matrix product on this rank's device; the best of two."""
    side = _PRODUCT_SIDE[world.device.type]
    a = torch.ones(side, side, device=world.device, dtype=torch.bfloat16 if bf16 else torch.float32)
    seconds = []
    for _ in range(3):
        _synchronize(world)
        start = time.perf_counter()
        a @ a
        _synchronize(world)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds[1:]) / 1e12


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
