"""Processes of one group for tests: forked from one that has imported PyTorch, which takes each new process seconds."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

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
