"""Images per second and CPU time of a pipeline."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rayface.bench.process_tree import cpu_seconds


@dataclass(frozen=True)
class Pace:
    """Images per second, and CPU time of all processes per image."""

    images_per_second: float
    cpu_microseconds: float


@contextmanager
def timed_pace() -> Iterator[Callable[[int], Pace]]:
    """Measure time and CPU time inside the context, of this process and its children; gives a function of images."""
    marks = [(time.perf_counter(), cpu_seconds(os.getpid()))]
    yield lambda images: Pace(images / (marks[1][0] - marks[0][0]), sum(_used(marks[0][1], marks[1][1])) / images * 1e6)
    marks.append((time.perf_counter(), cpu_seconds(os.getpid())))


def _used(before: dict[int, float], after: dict[int, float]) -> Iterator[float]:
    return (seconds - before.get(pid, 0.0) for pid, seconds in after.items())
