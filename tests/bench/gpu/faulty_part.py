"""A part of the kit whose cases fail in every way that a GPU makes them fail."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rayface.bench.gpu import worker
from rayface.bench.gpu.case import Case, Kit, Measured, Part

PART = Part(key="x", title="faults", module="tests.bench.gpu.faulty_part", weight=1)


@dataclass(frozen=True, kw_only=True)
class Answer(Measured):
    """One figure."""

    answer: int


def cases(kit: Kit) -> Iterator[Case]:
    """Yield one case for each way to end, and a good one after each that ends the process."""
    worker._LEAST_LIMIT, worker._LIMIT_FACTOR = 3.0, 0.0
    yield Case(name="good", run=lambda: Answer(answer=42))
    yield Case(name="not passed", run=lambda: Answer(answer=41, passed=False, note="off by one"))
    yield Case(name="raises", run=_raises)
    yield Case(name="no memory", run=_no_memory)
    yield Case(name="crash", run=lambda: os._exit(7))
    yield Case(name="after the crash", run=lambda: Answer(answer=43))
    yield Case(name="hang", run=_hang)
    yield Case(name="after the hang", run=lambda: Answer(answer=44))
    raise RuntimeError("no more cases")


def _raises() -> Measured:
    raise ValueError("first line\nsecond line")


def _no_memory() -> Measured:
    raise torch.OutOfMemoryError("CUDA out of memory")


def _hang() -> Measured:
    time.sleep(600)
    return Measured()
