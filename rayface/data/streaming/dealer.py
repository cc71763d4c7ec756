"""The actor between Ray Data, which reads windows ahead, and the workers, which take them turn by turn."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import SampleIndex
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.shared_samples import SharedSamples
from rayface.data.streaming.windows import error_block, read_windows
from rayface.ray_internals import ExecutionCallback
from rayface.storage import DataError, StorageError

# A block costs Ray Data's loop 3 to 4 ms whatever its size.
_BLOCK_IMAGES = 512
# One Ray Data execution: its inputs are put into the object store at its start, 0.6 ms each.
_TURNS_PER_EXECUTION = 1024
_TURNS_AHEAD = 2
_SHORTEST_REST, _LONGEST_REST = 1e-3, 0.05  # seconds


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What is read for a run of steps, and by how much.

    Attributes:
        samples: of the dataset.
        steps: first and last + 1.
        readers: read tasks at once; 0: two for each CPU that training leaves free, which share it.
        reserved: resources that training holds, {"CPU": ..., "GPU": ...}.
        block_images: windows are read together until each node gets so many images.
        turns_per_execution: read by one Ray Data execution; the next one starts when its first turn is asked for.
        turns_ahead: turns that a worker asks for before it needs them.
    """

    samples: SharedSamples
    plan: SampleOrder
    image_size: int
    world_size: int
    steps: tuple[int, int]
    readers: int
    reserved: dict[str, float]
    block_images: int
    turns_per_execution: int
    turns_ahead: int


@dataclass(frozen=True)
class Dealt:
    """A stream as workers know it; small enough to be sent to all of them."""

    dealer: Any
    stream: Stream


def deal(
    samples: SharedSamples,
    plan: SampleOrder,
    *,
    image_size: int,
    world_size: int,
    start: int,
    stop: int,
    readers: int,
    reserved: dict[str, float],
) -> Dealt:
    """Start the dealer of the steps [start, stop) on this node; every rank reads it by stream.train_batches.

    The dealer lives as long as this process and until all ranks are done with it.
    """
    stream = Stream(
        samples=samples,
        plan=plan,
        image_size=image_size,
        world_size=world_size,
        steps=(start, stop),
        readers=readers,
        reserved=reserved,
        block_images=_BLOCK_IMAGES,
        turns_per_execution=_TURNS_PER_EXECUTION,
        turns_ahead=_TURNS_AHEAD,
    )
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # A call of each rank may wait while it makes the next one, or says that it is done.
    options = {"num_cpus": 0, "max_concurrency": world_size * (_TURNS_AHEAD + 2), "scheduling_strategy": here}
    return Dealt(ray.remote(Dealer).options(**options).remote(stream), stream)


class Dealer:
    """Has the windows of a stream read, and hands each rank the blocks of its node, turn by turn.

    A turn is one window, or several small ones; a read task yields a block for each node, which its ranks share in the
    object store.
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

    def take(self, rank: int, node: str, turn: int) -> list[Any] | None:
        """Return the block of the rank's node in a turn, as a reference in a list; None after the last turn.

        The first turn is read when all ranks have asked for it. Raises what stopped the readers.
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
        """Say that a rank takes no more turns; after the last one the readers are stopped and the actor ends."""
        with self._changed:
            self._done.add(rank)
            self._changed.notify_all()
        if len(self._done) == self._stream.world_size:
            if self._started:
                self._thread.join(timeout=10)
            ray.actor.exit_actor()

    def _run(self) -> None:
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

    def _hand_out(self, turn: int, blocks: dict[str, Any]) -> bool:
        """Make a turn ready and wait until the next one is asked for; whether there is anybody left to ask."""
        with self._changed:
            self._turns[turn] = _Turn(blocks, set(range(self._stream.world_size)))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._asked > turn or self._all_done())
            return not self._all_done()

    def _all_done(self) -> bool:
        return len(self._done) == self._stream.world_size

    def _blocks(self) -> Iterator[dict[str, Any]]:
        """Yield each turn's block by node."""
        names = sorted(set(self._node_of.values()))
        nodes = [sorted(rank for rank, own in self._node_of.items() if own == name) for name in names]
        for turns in _executions(self._stream, len(nodes)):
            refs = (ref for bundle in _read(self._stream, turns, nodes) for ref in bundle.block_refs)
            for _ in turns:
                yield {name: next(refs) for name in names}


@dataclass
class _Turn:
    blocks: dict[str, Any]  # by node
    waiting: set[int]  # ranks that have not taken it


def _executions(stream: Stream, num_nodes: int) -> Iterator[list[range]]:
    """The windows of every turn, in lists of one Ray Data execution each."""
    plan, (start, stop) = stream.plan, stream.steps
    if start == stop:
        return
    together = max(1, -(-stream.block_images * num_nodes // (plan.window_steps * plan.batch_size)))
    first, end = plan.window_of(start)[0], plan.window_of(stop - 1)[0] + 1
    turns = [range(window, min(window + together, end)) for window in range(first, end, together)]
    for at in range(0, len(turns), stream.turns_per_execution):
        yield turns[at : at + stream.turns_per_execution]


def _read(stream: Stream, turns: Sequence[range], nodes: Sequence[Sequence[int]]) -> Iterator[Any]:
    """Start a Ray Data execution and return its blocks: in order of the turns, for each node in order."""
    free = int(ray.cluster_resources().get("CPU", 1) - stream.reserved.get("CPU", 0))
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # a block a row
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, _Rest]
    context.execution_options.preserve_order = True
    context.execution_options.exclude_resources = ExecutionResources(
        cpu=stream.reserved.get("CPU", 0), gpu=stream.reserved.get("GPU", 0)
    )
    # Without room for all of a task's blocks it would wait for the loop after every two.
    context._max_num_blocks_in_streaming_gen_buffer = max(2, len(nodes))

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        reader, index = _opened(stream.samples)
        windows = range(int(batch["first"][0]), int(batch["end"][0]))
        try:
            yield from read_windows(reader, index, stream.plan, windows, stream.image_size, nodes)
        except (DataError, StorageError) as error:  # before its first block
            # An answer like any other: Ray would wrap it in a page of text.
            yield from [error_block(error)] * len(nodes)

    with DataContext.current(context):
        inputs = [{"first": turn.start, "end": turn.stop} for turn in turns]
        blocks = ray.data.from_items(inputs, override_num_blocks=len(inputs)).map_batches(
            read,
            batch_size=1,
            batch_format="numpy",
            # Ray Data takes up to 0.3 s to see that a task is done: meanwhile the other one has the CPU. With no CPU
            # left over, readers run beside the workers and the operating system shares.
            compute=TaskPoolStrategy(size=stream.readers or 2 * max(1, free)),
            num_cpus=0.5 if free >= 1 else 0,
        )
        return blocks.iter_internal_ref_bundles()


@lru_cache(maxsize=1)
def _opened(samples: SharedSamples) -> tuple[SampleReader, SampleIndex]:
    """What a reader keeps from one task to the next of the same stream."""
    shards, index = samples.get()
    return SampleReader(shards), index


class _Rest(ExecutionCallback):
    """Lets Ray Data's scheduling loop rest after rounds that moved nothing, longer each time.

    Without this the loop runs as fast as it can while readers are ahead of training, which is always: it
    used 29 % of a core while two workers trained on two loaded cores (Ray 2.60).
    """

    def __init__(self) -> None:
        self._before: list[tuple[int, ...]] = []
        self._seconds = _SHORTEST_REST

    def on_execution_step(self, executor: Any) -> None:
        now = [_moved(operator.metrics) for operator in executor._topology]
        if now != self._before:
            self._before, self._seconds = now, _SHORTEST_REST
            return
        time.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, _LONGEST_REST)


def _moved(metrics: Any) -> tuple[int, ...]:
    return (
        metrics.num_tasks_submitted,
        metrics.num_task_outputs_generated,
        metrics.num_tasks_finished,
        metrics.num_outputs_taken,
    )
