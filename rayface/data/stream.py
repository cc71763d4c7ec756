"""Ray Data: shards to the batches of every rank, in an order that the step alone decides."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import DataContext, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata

from rayface.data.images import decode_jpegs
from rayface.data.plan import Ids, SamplePlan
from rayface.data.samples import JPEG_SUFFIXES, locate_member
from rayface.data.shards import DataError, Dataset, Fault, SampleIndex, read_samples

# One Ray Data execution: its tasks are put into the object store at its start, 2 ms each.
_WINDOWS_PER_EXECUTION = 4096


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
        self._lost = {(f.shard, f.offset): f.num_lost for f in known}
        self._num_samples = num_samples + sum(self._lost.values())
        self._limit = max_corrupt_fraction

    @property
    def num_lost(self) -> int:
        """Damaged samples so far, those known from the start included."""
        return sum(self._lost.values())

    def add(self, faults: Sequence[Fault]) -> list[Fault]:
        """Count faults; the ones not seen before are returned.

        Raises:
            DataError: above the limit.
        """
        new = [f for f in faults if (f.shard, f.offset) not in self._lost]
        self._lost.update({(f.shard, f.offset): f.num_lost for f in new})
        if new and self.num_lost > self._limit * self._num_samples:
            raise DataError(
                f"{self.num_lost} of {self._num_samples} samples are damaged, more than "
                f"data.max_corrupt_fraction={self._limit:g} allows; the last is {new[-1]}; "
                "see `rayface check --deep` for all"
            )
        return new


def rank_rows(batch_size: int, rank: int, world_size: int) -> slice:
    """The part of the global batch that a rank trains on."""
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def split_streams(
    dataset: Dataset,
    plan: SamplePlan,
    *,
    image_size: int,
    world_size: int,
    first_window: int,
    last_window: int,
    readers: int,
    reserved: dict[str, float],
) -> list[Any]:
    """Start one Ray Data execution over windows [first, last) and return a block iterator for each rank.

    A read task decodes one window and yields a block for each rank, in order of rank. Blocks are of one row
    each and order is preserved, so that round-robin dealing gives rank r the r-th block of every window;
    the row carries its window and rank, and the reader of the stream holds both to what it expects.

    Args:
        readers: windows decoded at once; 0: one for each CPU that training leaves free, two if it leaves none.
        reserved: resources that training holds, {"CPU": ..., "GPU": ...}.
    """
    free = int(ray.cluster_resources().get("CPU", 1) - reserved.get("CPU", 0))
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block a row
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.exclude_resources = ExecutionResources(
        cpu=reserved.get("CPU", 0), gpu=reserved.get("GPU", 0)
    )
    source = _WindowSource(dataset, plan, image_size, world_size, range(first_window, last_window))
    with DataContext.current(context):
        windows = ray.data.read_datasource(
            source,
            override_num_blocks=last_window - first_window,
            # With no CPU left over, readers run beside the workers and the operating system shares.
            ray_remote_args={"num_cpus": 1 if free >= 1 else 0, "max_retries": 3},
            concurrency=readers or max(2, free),
        )
        return windows.streaming_split(world_size, equal=False)


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


def executions(plan: SamplePlan, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The window ranges of the Ray Data executions that cover the steps [start, stop) of the run."""
    first, last = plan.window_of(start)[0], plan.window_of(stop - 1)[0] + 1
    while first < last:
        end = min(first + _WINDOWS_PER_EXECUTION, last)
        yield first, end
        first = end


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


class _WindowSource(Datasource):
    """Read tasks for Ray Data: one for each window, cheap to send because the index is in the object store."""

    def __init__(self, dataset: Dataset, plan: SamplePlan, image_size: int, world_size: int, windows: range) -> None:
        super().__init__()
        self._plan, self._image_size, self._world_size, self._windows = plan, image_size, world_size, windows
        self._data = ray.put(([s.path for s in dataset.shards], dataset.index))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [self._task(window) for window in self._windows]

    def estimate_inmemory_data_size(self) -> int:
        return len(self._windows) * self._window_bytes()

    def _window_bytes(self) -> int:
        return self._plan.window_steps * self._plan.batch_size * self._image_size**2 * 3

    def _task(self, window: int) -> ReadTask:
        data, plan, size, world_size = self._data, self._plan, self._image_size, self._world_size

        def read() -> Iterator[pa.Table]:
            shards, index = ray.get(data)
            yield from read_window(shards, index, plan, window, size, world_size)

        metadata = BlockMetadata(
            num_rows=world_size, size_bytes=self._window_bytes(), input_files=None, exec_stats=None
        )
        return ReadTask(read, metadata)


def read_window(
    shards: Sequence[str], index: SampleIndex, plan: SamplePlan, window: int, image_size: int, world_size: int
) -> Iterator[pa.Table]:
    """Read and decode one window; one table of one row for each rank.

    The place of a damaged sample is taken by a whole one of the same window, so that every batch is full.
    """
    ids = plan.window(window)
    images, faults = _load(shards, index, ids.ravel(), image_size)
    labels = index.label[ids.ravel()].astype(np.int64)
    if faults:
        whole = np.setdiff1d(np.arange(ids.size), list(faults))
        if not whole.size:
            raise DataError(f"a whole window of {ids.size} samples is damaged; the first is {faults[0]}")
        for place in faults:
            stand_in = whole[place % whole.size]
            images[place], labels[place] = images[stand_in], labels[stand_in]
    images = images.reshape(*ids.shape, *images.shape[1:])
    labels = labels.reshape(ids.shape)
    notes = json.dumps([vars(fault) for fault in faults.values()])
    for rank in range(world_size):
        rows = rank_rows(plan.batch_size, rank, world_size)
        yield pa.table(
            {
                "window": [window],
                "rank": [rank],
                "size": [image_size],
                "images": pa.array([images[:, rows].tobytes()], pa.large_binary()),
                "labels": pa.array([labels[:, rows].tobytes()], pa.large_binary()),
                "faults": [notes],
            }
        )


def _load(shards: Sequence[str], index: SampleIndex, ids: Ids, image_size: int) -> tuple[np.ndarray, dict[int, Fault]]:
    """Images in the order of ids, and the fault of each place that has none."""
    # Neighbours in a shard are read with one request, so read in the order of the shards.
    order = np.argsort(ids, kind="stable")
    samples = read_samples(shards, index.select(ids[order]))
    jpegs = [b"" if isinstance(s, Fault) else s.jpeg for s in samples]
    decoded, bad = decode_jpegs(jpegs, image_size)
    images = np.empty_like(decoded)
    images[order] = decoded
    faults: dict[int, Fault] = {}
    for i, sample in enumerate(samples):
        if isinstance(sample, Fault):
            faults[int(order[i])] = sample
        elif i in bad:
            shard = shards[index.shard[ids[order[i]]]]
            member, offset = locate_member(shard, sample.offset, sample.num_bytes, JPEG_SUFFIXES)
            faults[int(order[i])] = Fault(shard=shard, member=member, offset=offset, reason=bad[i])
    return images, faults
