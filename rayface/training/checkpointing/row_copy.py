"""Copy a matrix while training updates rows of it: in host memory by a thread, on a GPU by another stream."""

import threading
import time

import torch
from torch import Tensor

_BLOCK_BYTES = 16 * 2**20
_REST_SECONDS = 1e-4  # pause between blocks, in which a waiting thread gets the lock


class RowCopy:
    """Snapshot of a matrix in host memory: a thread copies it, and rows that are about to be updated first.

    Memory: one byte per row.

    Args:
        live: (n, ...), in host memory.
        copy: host memory of the same shape.
    """

    def __init__(self, live: Tensor, copy: Tensor) -> None:
        self._live, self._copy = live, copy
        self._done = torch.zeros(len(live), dtype=torch.bool)
        self._lock = threading.Lock()

    def run(self) -> None:
        """Copy the remaining rows."""
        size = max(1, _BLOCK_BYTES // max(1, self._live[:1].nbytes))
        for start in range(0, len(self._live), size):
            with self._lock:
                block = slice(start, start + size)
                if self._done[block].any():
                    self._take((~self._done[block]).nonzero().squeeze(1) + start)
                else:
                    self._copy[block].copy_(self._live[block])
                self._done[block] = True
            time.sleep(_REST_SECONDS)

    def before_change(self, rows: Tensor) -> None:
        """Block until these rows (n,), int64, may be updated."""
        rows = rows.cpu()
        with self._lock:
            self._take(rows[~self._done[rows]])
            self._done[rows] = True

    def _take(self, rows: Tensor) -> None:
        self._copy[rows] = self._live[rows]


class DeviceCopy:
    """Snapshot of a matrix on a GPU: a stream of its own copies it; the next update waits there, not the host.

    Args:
        live: (n, ...), on a GPU; all updates are on the current stream.
        copy: host memory of the same shape; if it is not page-locked, the host waits here until it is filled.
    """

    def __init__(self, live: Tensor, copy: Tensor) -> None:
        self._device = live.device
        stream = torch.cuda.Stream(live.device)
        stream.wait_stream(torch.cuda.current_stream(live.device))
        with torch.cuda.stream(stream):
            copy.copy_(live, non_blocking=True)
        self._done = stream.record_event(torch.cuda.Event(blocking=True))  # `run` sleeps

    def run(self) -> None:
        """Block until the copy is complete."""
        self._done.synchronize()

    def before_change(self) -> None:
        """Have later work of the current stream wait for the copy."""
        torch.cuda.current_stream(self._device).wait_event(self._done)
