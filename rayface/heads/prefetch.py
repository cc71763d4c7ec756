"""Prefetch the sampled rows of the next loss from host memory in a thread while the backbone runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from rayface.heads.class_centers import ClassCenters, Workspace

Place = tuple[int, int]  # the head's step, and how many losses of that step came before


@dataclass
class FetchedRows:
    """The rows of a loss and their centers, as the loss would choose and read them."""

    rows: Tensor  # (n,) sorted local rows
    centers: Tensor | None  # (n, D) in the storage type, on the head's device; None once the next fetch has begun


@dataclass
class _Pending:
    labels: Tensor  # (B,) of the global batch
    place: Place
    found: Future[FetchedRows]


class RowPrefetch:
    """Fetch the rows of one loss at a time; with a GPU through pinned memory, on a separate stream.

    Call `cancel` before writing to the storage; writes must be complete when `start` is called.
    Memory: the sampled rows in the storage type, once on the device and, with a GPU, once more pinned.
    """

    def __init__(self, centers: ClassCenters) -> None:
        self._centers = centers
        self._pending: _Pending | None = None
        self._given: FetchedRows | None = None
        on_gpu = centers.device.type == "cuda"
        self._stream = torch.cuda.Stream(centers.device) if on_gpu else None
        # The current device of a new thread is 0: it would open a context there. The stream's device has a number.
        at_device = () if self._stream is None else (torch.cuda.set_device, (self._stream.device,))
        self._thread = ThreadPoolExecutor(1, "row-prefetch", *at_device)
        self._host = Workspace(torch.device("cpu"), pinned=on_gpu)
        self._near = Workspace(centers.device)

    def start(self, labels: Tensor, place: Place, choose: Callable[[], Tensor]) -> None:
        """Start fetching; drops the result of an earlier call.

        Args:
            labels, place: identify the loss for `take`; labels (B,) are of the global batch.
            choose: returns the sorted local rows; called in the thread.
        """
        self.cancel()
        if self._given is not None:
            self._given.centers = None  # its memory is needed
        if self._stream is not None:
            # kernels of the last loss read the buffer to be filled, and compute the labels
            self._stream.wait_stream(torch.cuda.current_stream(self._centers.device))
        self._pending = _Pending(labels, place, self._thread.submit(self._fetch, choose))

    def take(self, labels: Tensor, place: Place) -> FetchedRows | None:
        """Wait, and return the rows if they were fetched for this loss."""
        pending = self._pending
        self.cancel()
        if pending is None or pending.place != place or not torch.equal(pending.labels, labels):
            return None
        self._given = fetched = pending.found.result()
        if self._stream is not None:
            torch.cuda.current_stream(self._centers.device).wait_stream(self._stream)
            fetched.rows.record_stream(torch.cuda.current_stream(self._centers.device))
        return fetched

    def cancel(self) -> None:
        """Wait until the fetch ends, and drop its result."""
        if self._pending is not None:
            self._pending.found.exception()
            self._pending = None

    @torch.no_grad()
    def _fetch(self, choose: Callable[[], Tensor]) -> FetchedRows:
        values = self._centers.values
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            rows = choose()
            shape = (rows.numel(), values.shape[1])
            if self._stream is not None:
                self._stream.synchronize()  # the last copy out of the pinned buffer
            gathered = self._host.get("centers", shape, values.dtype)
            torch.index_select(values, 0, rows.to(values.device), out=gathered)
            if self._stream is None:
                return FetchedRows(rows, gathered)
            near = self._near.get("centers", shape, values.dtype)
            return FetchedRows(rows, near.copy_(gathered, non_blocking=True))
