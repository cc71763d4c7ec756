"""Rank and device of a worker, and the collectives that training needs."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from rayface.machine import num_cpus
from rayface.training.timeouts import JOIN

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """Rank of this worker, number of workers, and device."""

    rank: int
    size: int
    local_size: int
    device: torch.device


def use_cores(world: World) -> None:
    """Divide the machine's cores among its workers; Ray sets `train.cpus_per_worker` threads.

    With GPUs too: `head.host_memory` moves the rows of a step in host memory.
    """
    torch.set_num_threads(max(1, num_cpus() // world.local_size))


def host_group(timeout: timedelta | None) -> dist.ProcessGroup:
    """Return a gloo group of all ranks, with collectives of its own; every rank must call it.

    Args:
        timeout: of a collective; None: PyTorch's 30 minutes.

    Raises:
        RuntimeError: the ranks cannot reach each other by gloo; one line. Its ports and interface differ from NCCL's.
    """
    try:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=JOIN))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RuntimeError(
            f"rank {dist.get_rank()} cannot join the others by gloo within {JOIN} s: {reason}: open the ports between "
            "the nodes, or name the network interface in GLOO_SOCKET_IFNAME"
        ) from None
    assert group is not None
    _set_pg_timeout(timedelta(minutes=30) if timeout is None else timeout, group)
    return group


def average_buffers(module: torch.nn.Module, world: World) -> None:
    """Replace floating-point buffers (batch-norm statistics) by their mean over the ranks; one all-reduce."""
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if world.size == 1 or not buffers:
        return
    flat = torch.cat([b.detach().reshape(-1).float() for b in buffers])
    dist.all_reduce(flat)
    flat /= world.size
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def gather_rows(rows: torch.Tensor, counts: list[int], world: World) -> torch.Tensor:
    """Return the rows of all ranks in order of rank: (counts[rank], ...) -> (sum(counts), ...); one all-gather.

    Args:
        rows: this rank's rows, on the device of the process group.
        counts: rows of every rank; may differ.
    """
    if world.size == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def from_rank_0(value: T, world: World) -> T:
    """Return rank 0's value on every rank; one broadcast of a pickled object."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=world.device)
    return box[0]


def broadcast_flag(flag: bool, world: World) -> bool:
    """Return rank 0's flag on every rank; one broadcast of a number."""
    return bool(broadcast_int(int(flag), world))


def broadcast_int(number: int, world: World) -> int:
    """Return rank 0's number on every rank; one broadcast."""
    if world.size == 1:
        return number
    answer = torch.tensor(number, device=world.device)
    dist.broadcast(answer, src=0)
    return int(answer.item())
