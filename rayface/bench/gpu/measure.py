"""Time, memory and host synchronisations of work on a device."""

import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

_SYNC_MESSAGE = "called a synchronizing CUDA operation"
_SITES = 6  # that are named
GB = 1e9


class Laps:
    """Milliseconds between marks: CUDA events on a GPU, which do not wait for it, and the clock on a CPU."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """Mark the present place in the device's work."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Wait for the device, and return the time between each two marks."""
        if self._cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) for a, b in zip(self._events, self._events[1:], strict=False)]
        return [1e3 * (b - a) for a, b in zip(self._times, self._times[1:], strict=False)]


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def median_laps(work: Callable[[Laps], object], device: str, *, warm_up: int, repeats: int) -> list[float]:
    """Return the medians of the laps that `work` marks, in milliseconds; the last lap ends with it."""
    found = []
    for number in range(warm_up + repeats):
        wait(device)
        laps = Laps(device)
        laps.mark()
        work(laps)
        laps.mark()
        if number >= warm_up:
            found.append(laps.milliseconds())
    return medians(found)


def median_ms(work: Callable[[], object], device: str, *, warm_up: int = 2, repeats: int = 5) -> float:
    """Return the median milliseconds of `work`."""
    return median_laps(lambda _: work(), device, warm_up=warm_up, repeats=repeats)[0]


def medians(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the median of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


@dataclass(frozen=True)
class Syncs:
    """How often the host waited for the device, and where; None on a CPU."""

    count: int | None
    sites: str


def count_syncs(work: Callable[[], object], device: str) -> Syncs:
    """Run work and count the calls that make the host wait for the GPU, by torch.cuda.set_sync_debug_mode."""
    if device != "cuda":
        work()
        return Syncs(None, "")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in seen if _SYNC_MESSAGE in str(w.message))
    named = ", ".join(f"{place} x{count}" for place, count in places.most_common(_SITES))
    return Syncs(places.total(), named)


class PeakMemory:
    """Bytes of tensors on the GPU at the peak since it was made; None on a CPU."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    @property
    def gb(self) -> float | None:
        """The peak in GB."""
        return torch.cuda.max_memory_allocated() / GB if self._cuda else None
