"""Actor between Ray Data, which reads windows ahead, and the workers, which take them turn by turn."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import SampleIndex
from rayface.data.streaming.label_groups import LabelGroups
from rayface.data.streaming.read_tasks import read_tasks, start_process
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.scheduling_rest import SchedulingRest
from rayface.data.streaming.shared_samples import SharedSamples
from rayface.data.streaming.windows import error_block, read_windows
from rayface.ray_internals.data import execute_data_locally, log_no_debug_messages, schedule_promptly
from rayface.storage import DataError, StorageError

# A block costs Ray Data's loop 3 to 4 ms whatever its size.
_BLOCK_IMAGES = 512
# One Ray Data execution: its inputs are put into the object store at its start, 0.6 ms each.
_TURNS_PER_EXECUTION = 1024
_TURNS_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Description of a stream for consecutive steps.

    Attributes:
        samples: paths and index of the dataset.
        order: which image is in which step.
        steps: first step and last step + 1.
        readers: number of concurrent read tasks; 0: two for each CPU that training leaves free.
        reserved: resources held by training, {"CPU": ..., "GPU": ...}.
        block_images: minimum images per node and block; small windows are read together until they have it.
        turns_per_execution: turns of whole windows read by one Ray Data execution; the next starts when its first turn
            is requested.
        local: Ray was started by the job, for itself.
        turns_ahead: turns that a worker requests before it needs them.
        early: read the first steps of a large first window before its others.
    """

    samples: SharedSamples
    order: SampleOrder
    image_size: int
    world_size: int
    steps: tuple[int, int]
    readers: int
    reserved: dict[str, float]
    block_images: int
    turns_per_execution: int
    turns_ahead: int
    early: bool
    local: bool


@dataclass(frozen=True)
class Dealt:
    """A stream and its dealer, as sent to the workers."""

    dealer: ray.actor.ActorHandle
    stream: Stream


def deal(
    samples: SharedSamples,
    order: SampleOrder,
    *,
    image_size: int,
    world_size: int,
    start: int,
    stop: int,
    readers: int,
    reserved: dict[str, float],
    early: bool = True,
    local: bool = False,
) -> Dealt:
    """Start the dealer of the steps [start, stop) on this node; every rank reads from it by batches.train_batches.

    The dealer ends with this process, or when all ranks are done with it.
    """
    stream = Stream(
        samples=samples,
        order=order,
        image_size=image_size,
        world_size=world_size,
        steps=(start, stop),
        readers=readers,
        reserved=reserved,
        block_images=_BLOCK_IMAGES,
        turns_per_execution=_TURNS_PER_EXECUTION,
        turns_ahead=_TURNS_AHEAD,
        early=early,
        local=local,
    )
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # A call of each rank may wait while the rank makes the next one or calls `done`.
    options = {"num_cpus": 0, "max_concurrency": world_size * (_TURNS_AHEAD + 2), "scheduling_strategy": here}
    dealer = ray.remote(Dealer).options(**options).remote(stream)
    _, cpus = read_tasks(readers, reserved.get("CPU", 0))
    start_process(cpus)
    return Dealt(dealer, stream)


class Dealer:
    """Reads the windows of a stream with Ray Data and gives each rank the blocks of its node, turn by turn.

    A turn is one window, or several small ones; a read task yields a block for each node, which its ranks share in the
    object store. Before the turn of a large first window the same task yields one of its first steps, decoded in a part
    of the time: training begins while the others are decoded.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._node_of: dict[int, str] = {}
        self._asked = -1
        self._turns: dict[int, _Turn] = {}
        self._error: BaseException | None = None
        self._ended = False
        self._done: set[int] = set()
        self._changed = threading.Condition()
        self._started = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def take(self, rank: int, node: str, turn: int) -> list[ray.ObjectRef] | None:
        """Return the block of the rank's node in a turn, as a reference in a list; None after the last turn.

        Reading starts when all ranks have requested the first turn. Raises the error that stopped the readers.
        """
        with self._changed:
            self._node_of[rank] = node
            if len(self._node_of) == self._stream.world_size and not self._started:
                self._started = True
                self._thread.start()
            self._asked = max(self._asked, turn)
            self._changed.notify_all()
            self._changed.wait_for(lambda: turn in self._turns or self._ended or rank in self._done)
            if turn not in self._turns:
                if self._error is not None and rank not in self._done:
                    raise self._error
                return None
            ready = self._turns[turn]
            ready.waiting.discard(rank)
            if not ready.waiting:
                del self._turns[turn]
            return [ready.blocks[node]]

    def done(self, rank: int) -> None:
        """Record that a rank takes no more turns; after the last rank, stop the readers and end the actor."""
        with self._changed:
            self._done.add(rank)
            self._changed.notify_all()
        if len(self._done) == self._stream.world_size:
            if self._started:
                self._thread.join(timeout=10)
            ray.actor.exit_actor()

    def _run(self) -> None:
        schedule_promptly()
        log_no_debug_messages()
        if self._stream.local:
            execute_data_locally()
        try:
            for turn, blocks in enumerate(self._blocks()):
                if not self._hand_out(turn, blocks):
                    break
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _hand_out(self, turn: int, blocks: dict[str, ray.ObjectRef]) -> bool:
        """Offer a turn, wait until the next one is requested, and return whether any rank still takes turns."""
        with self._changed:
            self._turns[turn] = _Turn(blocks, set(range(self._stream.world_size)))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._asked > turn or self._all_done())
            return not self._all_done()

    def _all_done(self) -> bool:
        return len(self._done) == self._stream.world_size

    def _blocks(self) -> Iterator[dict[str, ray.ObjectRef]]:
        """Yield each turn's block by node."""
        names = sorted(set(self._node_of.values()))
        nodes = [sorted(rank for rank, own in self._node_of.items() if own == name) for name in names]
        early = _early_steps(self._stream, len(nodes))
        for turns in _executions(self._stream, len(nodes)):
            refs = _read(self._stream, turns, nodes, early)
            for _ in range(len(turns) + (early is not None)):
                yield {name: next(refs) for name in names}
            early = None


@dataclass
class _Turn:
    blocks: dict[str, ray.ObjectRef]  # by node
    waiting: set[int]  # ranks that have not taken it


def _executions(stream: Stream, num_nodes: int) -> Iterator[list[range]]:
    """Yield, for each Ray Data execution, the windows of its turns."""
    order, (start, stop) = stream.order, stream.steps
    if start == stop:
        return
    together = max(1, -(-stream.block_images * num_nodes // (order.window_steps * order.images_per_step)))
    first, end = order.window_of(start)[0], order.window_of(stop - 1)[0] + 1
    turns = [range(window, min(window + together, end)) for window in range(first, end, together)]
    for at in range(0, len(turns), stream.turns_per_execution):
        yield turns[at : at + stream.turns_per_execution]


def _early_steps(stream: Stream, num_nodes: int) -> range | None:
    """Return the steps of the first window that are read before its others.

    None if they are more than half of the steps that are left of it, as by default from 5 nodes on, or if the stream
    ends with them: it would not have the faults of the others.
    """
    order, (start, stop) = stream.order, stream.steps
    steps = -(-stream.block_images * num_nodes // order.images_per_step)
    if not stream.early or steps >= stop - start:
        return None
    window, place = order.window_of(start)
    return range(place, place + steps) if place + 2 * steps <= len(order.steps_of(window)) else None


def _read(
    stream: Stream, turns: Sequence[range], nodes: Sequence[Sequence[int]], early: range | None
) -> Iterator[ray.ObjectRef]:
    """Start a Ray Data execution and return its blocks, ordered by turn and node; first those of the early steps."""
    tasks, cpus = read_tasks(stream.readers, stream.reserved.get("CPU", 0))
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block a row
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, SchedulingRest]
    context.execution_options.preserve_order = True
    context.execution_options.exclude_resources = ExecutionResources(
        cpu=stream.reserved.get("CPU", 0), gpu=stream.reserved.get("GPU", 0)
    )
    limit = _read_ahead_bytes(stream, turns, tasks)
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=limit)
    # Without room for all of a task's blocks, of the first one two a node, it would wait for the loop after every two.
    context._max_num_blocks_in_streaming_gen_buffer = 2 * len(nodes)

    def read(batch: dict[str, NDArray[np.int64]]) -> Iterator[pa.Table]:
        reader, index, groups = _opened(stream.samples)
        windows = range(int(batch["first"][0]), int(batch["end"][0]))
        own = early if windows[0] == turns[0].start else None
        missing = len(nodes) * (1 if own is None else 2)
        try:
            for block in read_windows(reader, index, stream.order, windows, stream.image_size, nodes, groups, own):
                yield block
                missing -= 1
        except (DataError, StorageError) as error:
            # As blocks: Ray would wrap an exception in a page of text.
            yield from [error_block(error)] * missing

    with DataContext.current(context):
        inputs = [{"first": turn.start, "end": turn.stop} for turn in turns]
        blocks = ray.data.from_items(inputs, override_num_blocks=len(inputs)).map_batches(
            read,
            batch_size=1,
            batch_format="numpy",
            compute=TaskPoolStrategy(size=tasks),
            num_cpus=cpus,
        )
        bundles = blocks.iter_internal_ref_bundles()
        return (ref for bundle in bundles for ref in bundle.block_refs)


def _read_ahead_bytes(stream: Stream, turns: Sequence[range], tasks: int) -> int:
    """Return the size of a turn for each task, of the one that is trained and of those that ranks requested ahead.

    With less, tasks wait for the ranks: Ray Data counts a block as long as any process holds it. By default it reads
    ahead until a quarter of the machine's memory is full. Where readers share the CPUs with training, that takes their
    time from the first hundreds of steps.
    """
    images = len(turns[0]) * stream.order.window_steps * stream.order.images_per_step
    return (tasks + 1 + stream.turns_ahead) * images * 3 * stream.image_size**2


@lru_cache(maxsize=1)
def _opened(samples: SharedSamples) -> tuple[SampleReader, SampleIndex, LabelGroups | None]:
    """Cache per process: reader, index and groups, kept between tasks of a stream."""
    log_no_debug_messages()
    return samples.reader()
