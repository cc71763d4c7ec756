"""Copy a matrix block by block in one thread while another thread updates rows of it."""

import threading
import time

import torch
from torch import Tensor

_BLOCK_BYTES = 16 * 2**20
_REST_SECONDS = 1e-4  # pause between blocks, in which a waiting thread gets the lock


class RowCopy:
    """Snapshot of a matrix: rows that are about to be updated are copied first.

    Memory: one byte per row.

    Args:
        live: (n, ...), on any device.
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
        self._copy[rows] = self._live[rows.to(self._live.device)].to(self._copy.device)
