"""Throughput of the training loop, and the fraction of time spent waiting for data."""

import time
from collections.abc import Iterator

from rayface.data.streaming.batches import Batch


class Meter:
    """Steps per second and fraction of time spent waiting for data, since the last restart or reading."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    def waiting_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches, and count the time until each arrives as waiting time."""
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def read(self, step: int) -> tuple[float, float]:
        """Return steps per second and the fraction of time waited since the last reading, and restart."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        reading = (step - self._step) / elapsed, self._waited / elapsed
        self.restart(step)
        return reading
