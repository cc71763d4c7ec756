"""Processes of one group for tests: forked from one that has imported PyTorch, which takes each new process seconds."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp

from rayface.fork_server import OWN_MODULES
from rayface.fork_server.launch import LIBRARIES


def run_ranks(work: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Call work(rank, *arguments) in processes of this environment; as `mp.spawn`, whose errors it raises."""
    multiprocessing.set_forkserver_preload([*LIBRARIES, *OWN_MODULES])
    mp.start_processes(_in_environment, (dict(os.environ), work, arguments), count, start_method="forkserver")


def _in_environment(
    rank: int, environment: dict[str, str], work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(rank, *arguments)
    # Not in `work`, whose DistributedDataParallel would be the last to hold the group: it ends gloo's threads while it
    # holds Python's lock, which they need where a collective has just ended.
    if dist.is_initialized():
        dist.destroy_process_group()
