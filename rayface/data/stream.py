"""The worker's side of the stream: blocks of Ray Data to the batches of a rank, held to the plan."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rayface.data.plan import SamplePlan
from rayface.data.shards import DataError, Fault
from rayface.data.windows import rank_rows


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A rank's part of the global batch of a step.

    Attributes:
        step: step of the run.
        rows: the rank's part of the global batch.
        images: uint8 (n, size, size, 3) RGB.
        labels: int64 (n,), global.
        faults: damaged samples of the window, the same list on every rank; given with its first batch.
    """

    step: int
    rows: slice
    images: torch.Tensor
    labels: torch.Tensor
    faults: tuple[Fault, ...]


class FaultCounter:
    """Counts distinct damaged samples; too many of them stop the run.

    Every rank sees the same faults at the same step, so all ranks stop together without a collective.
    """

    def __init__(self, num_samples: int, max_corrupt_fraction: float, known: Sequence[Fault] = ()) -> None:
        self._lost = {(f.shard, f.member, f.offset): f.num_lost for f in known}
        self._num_samples = num_samples + sum(self._lost.values())
        self._limit = max_corrupt_fraction

    @property
    def num_lost(self) -> int:
        """Damaged samples so far, those known from the start included."""
        return sum(self._lost.values())

    def state(self) -> list[list[Any]]:
        """What was counted, as JSON."""
        return [[*key, lost] for key, lost in self._lost.items()]

    def load_state(self, state: list[list[Any]]) -> None:
        """Count what an earlier part of the run has met as well."""
        self._lost.update({(shard, member, offset): lost for shard, member, offset, lost in state})

    def add(self, faults: Sequence[Fault]) -> list[Fault]:
        """Count faults; the ones not seen before are returned.

        Raises:
            DataError: above the limit.
        """
        new = [f for f in faults if (f.shard, f.member, f.offset) not in self._lost]
        self._lost.update({(f.shard, f.member, f.offset): f.num_lost for f in new})
        if new and self.num_lost > self._limit * self._num_samples:
            raise DataError(
                f"{self.num_lost} of {self._num_samples} samples are damaged, more than "
                f"data.max_corrupt_fraction={self._limit:g} allows; the last is {new[-1]}; "
                "see `rayface check --deep` for all"
            )
        return new


def train_batches(
    streams: Iterator[tuple[int, Any]], plan: SamplePlan, *, start: int, stop: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """This rank's batches of the steps [start, stop) of the run.

    Args:
        streams: (first window, block iterator) of this rank, one for each execution of Ray Data.
    """
    rows = rank_rows(plan.batch_size, rank, world_size)
    step = start
    for first_window, stream in streams:
        window = first_window
        for block in stream.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2):
            row = {name: block[name][0] for name in block.column_names}
            got = (row["window"].as_py(), row["rank"].as_py())
            if got != (window, rank):
                raise RuntimeError(f"Ray Data dealt (window, rank) {got} to {(window, rank)}; order was lost")
            for batch in _cut(row, plan, step, rows):
                if batch.step >= stop:
                    return
                yield batch
                step = batch.step + 1
            window += 1


def _cut(row: dict[str, pa.Scalar], plan: SamplePlan, step: int, rows: slice) -> Iterator[Batch]:
    """The batches of a window from `step` on."""
    labels = np.frombuffer(row["labels"].as_buffer(), np.int64)
    per_step = rows.stop - rows.start
    size = row["size"].as_py()
    images = np.frombuffer(row["images"].as_buffer(), np.uint8).reshape(-1, size, size, 3)
    faults = tuple(Fault(**fault) for fault in json.loads(row["faults"].as_py()))
    place = plan.window_of(step)[1]
    for i in range(place, len(labels) // per_step):
        part = slice(i * per_step, (i + 1) * per_step)
        yield Batch(
            step=step + i - place,
            rows=rows,
            images=torch.from_numpy(images[part].copy()),
            labels=torch.from_numpy(labels[part].copy()),
            faults=faults if i == place else (),
        )
