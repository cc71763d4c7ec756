"""Snapshot of a rank's state in host memory, completed by a thread while training continues."""

import threading
import time
from collections.abc import Callable

import torch

from rayface.models.row_shard import RowShard
from rayface.training.checkpointing.checkpoint import State
from rayface.training.checkpointing.row_copy import DeviceCopy, RowCopy

Buffers = Callable[[str, torch.Tensor], torch.Tensor]
"""Maps a name and a tensor to host memory of the same shape and dtype."""


class Snapshot:
    """Copy a state; row shards are copied while training continues, because only a step of the head updates them.

    `wait_until_copied` makes a step wait until the rows that it updates are copied; `start` copies all other tensors.
    """

    def __init__(self) -> None:
        self._rows: list[RowCopy | DeviceCopy] = []
        self._rows_copied = threading.Event()
        self._rows_copied.set()
        self.waited = 0.0
        """Seconds that the host has waited for the rows since `start`."""

    def start(self, state: State, buffers: Buffers) -> State:
        """Copy all tensors except row shards and return the state in the buffers; then call `run` in another thread."""
        shards = {name: tensor for name, tensor in state.items() if isinstance(tensor, RowShard)}
        copies = copied({name: tensor for name, tensor in state.items() if name not in shards}, buffers)
        copies |= {name: shard.over(buffers(name, shard)) for name, shard in shards.items()}
        self._rows = [
            (DeviceCopy if shard.is_cuda else RowCopy)(plain(shard), plain(copies[name]))
            for name, shard in shards.items()
        ]
        self.waited = 0.0
        self._rows_copied.clear()
        return copies

    def run(self) -> None:
        """Copy the row shards; return when they are copied."""
        try:
            for rows in self._rows:
                rows.run()
        finally:
            self._rows_copied.set()

    def wait_until_copied(self, rows: torch.Tensor | None = None) -> None:
        """Have updates of row shards wait for their copy; call it before every step of the head.

        Args:
            rows: (n,) int64, rows of this rank's part to be updated; None: all.
        """
        if self._rows_copied.is_set():
            return
        start = time.perf_counter()
        for shard in self._rows:
            if not isinstance(shard, RowCopy):
                shard.before_change()
            elif rows is None:
                self._rows_copied.wait()
            else:
                shard.before_change(rows)
        self.waited += time.perf_counter() - start


def copied(state: State, buffers: Buffers) -> State:
    """Return a copy of the state in host memory."""
    copies: State = {}
    for name, tensor in state.items():
        copies[name] = buffers(name, tensor)
        copies[name].copy_(plain(tensor), non_blocking=tensor.is_cuda)
    for device in {tensor.device for tensor in state.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return copies


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor as a plain one without gradient, sharing its memory."""
    return tensor.as_subclass(torch.Tensor).detach()
