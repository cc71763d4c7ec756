"""The Ray Data side of the stream: tasks that read and decode windows of the plan, dealt to the ranks.

Runs in readers and in Ray Data's coordinator, where importing torch would cost seconds and memory for nothing.
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, Datasource, ExecutionResources, ReadTask
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata

from rayface.data.decode import decode_images
from rayface.data.members import IMAGE_SUFFIXES
from rayface.data.plan import Ids, SamplePlan, rank_rows
from rayface.data.samples import locate_member
from rayface.data.shards import DataError, Fault, SampleIndex, read_samples
from rayface.data.shared_samples import SharedSamples

# One Ray Data execution: its tasks are put into the object store at its start, 2 ms each.
_WINDOWS_PER_EXECUTION = 4096
_PACE_SECONDS = 0.05


def executions(plan: SamplePlan, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The window ranges of the Ray Data executions that cover the steps [start, stop) of the run."""
    first, last = plan.window_of(start)[0], plan.window_of(stop - 1)[0] + 1
    while first < last:
        end = min(first + _WINDOWS_PER_EXECUTION, last)
        yield first, end
        first = end


def split_streams(
    samples: SharedSamples,
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
        samples: of the dataset; the plan's numbers are places in its index.
        readers: windows decoded at once; 0: one for each CPU that training leaves free, two if it leaves none.
        reserved: resources that training holds, {"CPU": ..., "GPU": ...}.
    """
    free = int(ray.cluster_resources().get("CPU", 1) - reserved.get("CPU", 0))
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block a row
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Pace]
    context.execution_options.preserve_order = True
    context.execution_options.exclude_resources = ExecutionResources(
        cpu=reserved.get("CPU", 0), gpu=reserved.get("GPU", 0)
    )
    source = _WindowSource(samples, plan, image_size, world_size, range(first_window, last_window))
    with DataContext.current(context):
        windows = ray.data.read_datasource(
            source,
            override_num_blocks=last_window - first_window,
            # With no CPU left over, readers run beside the workers and the operating system shares.
            ray_remote_args={"num_cpus": 1 if free >= 1 else 0, "max_retries": 3},
            concurrency=readers or max(2, free),
        )
        return windows.streaming_split(world_size, equal=False)


class _Pace(ExecutionCallback):
    """Lets Ray Data's scheduling loop rest between its rounds.

    Without this the loop runs as fast as it can while readers are ahead of training, which is always: it
    used 29 % of a core while two workers trained on two loaded cores (Ray 2.60).
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(_PACE_SECONDS)


class _WindowSource(Datasource):
    """Read tasks for Ray Data: one for each window, cheap to send because the index is in the object store."""

    def __init__(
        self, samples: SharedSamples, plan: SamplePlan, image_size: int, world_size: int, windows: range
    ) -> None:
        super().__init__()
        self._samples, self._plan, self._windows = samples, plan, windows
        self._image_size, self._world_size = image_size, world_size

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [self._task(window) for window in self._windows]

    def estimate_inmemory_data_size(self) -> int:
        return len(self._windows) * self._window_bytes()

    def _window_bytes(self) -> int:
        return self._plan.window_steps * self._plan.batch_size * self._image_size**2 * 3

    def _task(self, window: int) -> ReadTask:
        samples, plan, size, world_size = self._samples, self._plan, self._image_size, self._world_size

        def read() -> Iterator[pa.Table]:
            shards, index = samples.get()
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
    decoded, bad = decode_images(jpegs, image_size)
    images = np.empty_like(decoded)
    images[order] = decoded
    faults: dict[int, Fault] = {}
    for i, sample in enumerate(samples):
        if isinstance(sample, Fault):
            faults[int(order[i])] = sample
        elif i in bad:
            shard = shards[index.shard[ids[order[i]]]]
            member, offset = locate_member(shard, sample.offset, sample.num_bytes, IMAGE_SUFFIXES)
            faults[int(order[i])] = Fault(shard=shard, member=member, offset=offset, reason=bad[i])
    return images, faults
