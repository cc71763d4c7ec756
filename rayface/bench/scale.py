"""Benchmark of an index of WebFace42M's size: time and memory to open it, order it, start the stream, and embed."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import ray

from rayface.bench.index_cost import Cost, cost_of, open_index, open_shards, order_steps
from rayface.bench.process_tree import private_bytes, process_tree
from rayface.bench.simulated import Simulated, simulate
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.streaming.batches import train_batches
from rayface.data.streaming.dealer import Dealt, deal
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.shared_samples import share
from rayface.pools import background_thread
from rayface.session import ray_session

_IMAGE_SIZE = 32
_STEPS = 8  # of a measured stream
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class ScaleBench:
    """Settings of a measurement.

    Attributes:
        size: size of the simulated dataset.
        batch_size: global batch.
        chunks: values of data.chunk_images whose order is measured.
        workers: ranks of the stream; 0: no stream and no Ray.
        directory: folder on the disk to measure; None: the temporary folder.
    """

    size: Simulated
    batch_size: int = 1024
    chunks: tuple[int, ...] = (8, 1)
    workers: int = 2
    directory: Path | None = None


@dataclass(frozen=True, kw_only=True)
class StreamStart:
    """The stream's first batch on every rank, from a step on.

    Attributes:
        step: first step.
        seconds: time until every rank has its first batch, without the start of Ray and of the ranks.
        private_bytes: maximum private memory of a process by kind: driver, rank, reader, dealer.
    """

    step: int
    seconds: float
    private_bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class ScaleResult:
    """Measurements of a simulated dataset."""

    images: int
    identities: int
    shards: int
    costs: list[Cost]
    starts: list[StreamStart]

    def as_dict(self) -> dict[str, object]:
        """Return the values by name, for --json."""
        return asdict(self)


def bench_scale(settings: ScaleBench) -> ScaleResult:
    """Write a simulated dataset, and measure each use of its index in a new process on one core, then the stream.

    Raises:
        ValueError: numbers that no dataset has.
    """
    with tempfile.TemporaryDirectory(dir=settings.directory) as folder:
        folders = simulate(Path(folder) / "simulated", settings.size)
        dataset, selection = str(folders.dataset), str(folders.selection)
        costs = [
            cost_of(open_index, "open the dataset", dataset),
            cost_of(open_index, "open a selection of all its samples", selection),
        ]
        for chunk in settings.chunks:
            order = SampleOrder(num_samples=settings.size.images, batch_size=settings.batch_size, chunk_images=chunk)
            middle = order.steps_per_epoch // 2
            end = order.steps_per_epoch
            costs += [
                cost_of(order_steps, f"order of the first step, chunks of {chunk}", order, [0]),
                cost_of(order_steps, f"order of a step in the middle, chunks of {chunk}", order, [middle]),
                cost_of(order_steps, f"order of 100 windows, chunks of {chunk}", order, _hundred(order)),
                cost_of(order_steps, f"order at an epoch's end, chunks of {chunk}", order, [end - 1, end]),
            ]
        costs.append(cost_of(open_shards, "open and cut into shards to embed", dataset))
        starts = list(_starts(settings, selection)) if settings.workers else []
    size = settings.size
    return ScaleResult(images=size.images, identities=size.identities, shards=size.shards, costs=costs, starts=starts)


def as_tables(result: ScaleResult) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield title and rows of each printed table."""
    title = f"{result.images:,} images, {result.identities:,} identities, {result.shards:,} shards"
    yield (
        title,
        [
            {
                "one core": cost.what,
                "seconds": f"{cost.seconds:.2f}",
                "CPU": f"{cost.cpu_seconds:.2f}",
                "peak MB": f"{cost.peak_bytes / 1e6:,.0f}",
                "added MB": f"{cost.added_bytes / 1e6:,.0f}",
            }
            for cost in result.costs
        ],
    )
    if result.starts:
        yield (
            "first batch of the stream",
            [
                {
                    "from step": f"{start.step:,}",
                    "seconds": f"{start.seconds:.2f}",
                    **{f"{kind} MB": f"{held / 1e6:,.0f}" for kind, held in start.private_bytes.items()},
                }
                for start in result.starts
            ],
        )


def _hundred(order: SampleOrder) -> list[int]:
    count = min(100, order.windows_per_epoch)
    return [window * order.window_steps for window in range(count)]


def _starts(settings: ScaleBench, path: str) -> Iterator[StreamStart]:
    """Start the stream at the first step and in the middle of an epoch, in the middle of a window."""
    dataset = open_dataset(path)
    order = SampleOrder(num_samples=dataset.num_images, batch_size=settings.batch_size)
    with ray_session(num_cpus=settings.workers + 1, exact=True):
        rank = ray.remote(num_cpus=1)(_Rank)
        ranks = [rank.remote(number) for number in range(settings.workers)]
        ray.get([each.ready.remote() for each in ranks])
        for step in (0, order.steps_per_epoch // 2 + order.window_steps // 2):
            with _largest() as largest:
                began = time.perf_counter()
                dealt = _deal(dataset, order, step, settings.workers)
                ray.get([each.first.remote(dealt) for each in ranks])
                seconds = time.perf_counter() - began
                ray.get([each.rest.remote() for each in ranks])
            yield StreamStart(step=step, seconds=seconds, private_bytes=dict(largest))


def _deal(dataset: Dataset, order: SampleOrder, step: int, workers: int) -> Dealt:
    return deal(
        share(dataset),
        order,
        image_size=_IMAGE_SIZE,
        world_size=workers,
        start=step,
        stop=step + _STEPS,
        readers=0,
        reserved={"CPU": float(workers)},
    )


class _Rank:
    """Actor that takes the batches of one rank."""

    def __init__(self, number: int) -> None:
        self._number = number

    def ready(self) -> None:
        """Return once the process has started."""

    def first(self, dealt: Dealt) -> None:
        self._batches = train_batches(dealt, self._number)
        next(self._batches)

    def rest(self) -> None:
        for _ in self._batches:
            pass


_KINDS = {"ray::_Rank": "rank", "ray::MapBatches": "reader", "ray::Dealer": "dealer"}


@contextmanager
def _largest() -> Iterator[dict[str, int]]:
    """Track the maximum private memory of this process and its Ray processes, by kind; Linux only."""
    found = dict.fromkeys(("driver", *_KINDS.values()), 0)

    def look(done: threading.Event) -> None:
        while not done.wait(_LOOK_SECONDS):
            found["driver"] = max(found["driver"], private_bytes(os.getpid()))
            for process in process_tree(os.getpid()):
                for prefix, kind in _KINDS.items():
                    if process.name.startswith(prefix):
                        found[kind] = max(found[kind], private_bytes(process.pid))

    with background_thread(look, "memory", wait=None):
        yield found
