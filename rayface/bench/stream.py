"""Benchmark of the training stream: shards to normalised batches, against the decoder alone and against webdataset."""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

import torch

from rayface.bench.pace import Pace
from rayface.bench.slow_store import slow_store
from rayface.bench.stream_roads import StreamRoads, moved
from rayface.bench.waiting_readers import TURN_IMAGES, TURN_SECONDS
from rayface.config import Config
from rayface.data.dataset import open_dataset
from rayface.machine import keep_freed_memory
from rayface.progress import phase
from rayface.session import ray_session
from rayface.storage import CACHE_VARIABLE, DataError, is_local


@dataclass(frozen=True, kw_only=True)
class StreamBench:
    """Settings of a measurement of the training stream.

    Attributes:
        readers: numbers of readers, decoder threads and webdataset loader workers to measure.
        simulated: numbers of readers to simulate, each with a CPU of its own; see waiting_readers.
        chunks: values of data.chunk_images for the comparison of a disk with an object store.
        latency: latency of the object store's responses, seconds.
        rounds: each pipeline runs once per round; results are medians.
        windows: number of windows of data.window_images timed per run.
    """

    readers: tuple[int, ...]
    simulated: tuple[int, ...] = ()
    chunks: tuple[int, ...] = ()
    latency: float = 0.02
    rounds: int = 5
    windows: int = 12

    @property
    def most_readers(self) -> int:
        """Largest number of concurrent readers."""
        return max((*self.readers, *self.simulated))

    def check(self) -> None:
        """Raise ValueError, one line, for invalid settings."""
        for name in ("readers", "simulated", "chunks"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)}: must be at least 1")
        if self.rounds < 1 or self.windows < 1 or self.latency < 0:
            raise ValueError(f"rounds {self.rounds}, windows {self.windows}: must be at least 1, latency not negative")


@dataclass(frozen=True, kw_only=True)
class RoadTimes:
    """Medians of a pipeline over the rounds.

    Attributes:
        road: name of the pipeline.
        readers: number of concurrent readers, threads or loader workers.
        chunk_images: data.chunk_images; None if it has no effect.
        cpu_microseconds: CPU time of all processes of the pipeline per image; 0 if unknown.
        ratio: images/s relative to the reference pipeline in the same round; None for the reference.
    """

    road: str
    readers: int
    chunk_images: int | None
    images_per_second: float
    cpu_microseconds: float
    ratio: float | None


_Road = Callable[[], Pace]


def bench_stream(settings: StreamBench, config: Config) -> list[RoadTimes]:
    """Measure pipelines from images to normalised batches, in alternating order, on a local Ray.

    For each number of readers: the decoder alone on bytes in memory, webdataset's DataLoader if installed, and the
    training stream. Then for each number of `simulated` readers their limit and the training stream. Then for each of
    `chunks`, the stream from the disk, from a loopback object store with `latency`, and from this store with copies of
    its shards (data.cache_size), which are made from the start of each run; with the largest number of readers.

    Args:
        config: data and train.batch_size, as for a run.

    Raises:
        ValueError: invalid settings, or data on an object store.
    """
    settings.check()
    dataset = open_dataset(config.data.train, join=config.data.join)
    if not all(is_local(path) for path in dataset.shard_paths()):
        raise DataError("data.train: must be on a local disk: an object store is simulated")
    found: list[RoadTimes] = []
    total = settings.rounds * (len(settings.readers) + len(settings.simulated) + len(settings.chunks))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a training worker with one CPU
    keep_freed_memory()
    try:
        with (
            _own_cache(),  # before Ray starts, whose workers inherit it
            ray_session(num_cpus=settings.most_readers + 1, exact=True),
            phase("measure rounds", parts=total) as done,
        ):
            stream = StreamRoads(dataset, config, settings.windows)
            for readers in settings.readers:
                roads = _roads(stream, readers)
                found += _in_turn(roads, settings.rounds, readers, None, done.advance)
            for readers in settings.simulated:
                found += _in_turn(_simulated_roads(stream, readers), settings.rounds, readers, None, done.advance)
            if settings.chunks:
                with slow_store(dataset.shard_paths(), settings.latency) as uris:
                    remote = replace(stream, dataset=moved(dataset, uris))
                    for chunk in settings.chunks:
                        roads = _disk_and_store(stream, remote, max(settings.readers), chunk)
                        found += _in_turn(roads, settings.rounds, max(settings.readers), chunk, done.advance)
    finally:
        torch.set_num_threads(threads)
    return found


def as_table(results: Sequence[RoadTimes]) -> list[dict[str, str]]:
    """Return the rows of the printed table."""
    return [
        {
            "road": each.road,
            "readers": str(each.readers),
            "chunk": str(each.chunk_images or "-"),
            "images/s": f"{each.images_per_second:,.0f}",
            "ratio": "-" if each.ratio is None else f"{each.ratio:.2f}",
            "CPU us/image": f"{each.cpu_microseconds:.1f}",
        }
        for each in results
    ]


def as_dicts(results: Sequence[RoadTimes]) -> list[dict[str, object]]:
    """Return the values by name, for --json."""
    return [asdict(each) for each in results]


def _roads(stream: StreamRoads, readers: int) -> dict[str, _Road]:
    """Return the pipelines by name; the first one is the reference."""
    roads: dict[str, _Road] = {"decoder": lambda: stream.decoder(readers)}
    if find_spec("webdataset") is not None:
        roads["webdataset"] = lambda: stream.webdataset(readers)
    roads["stream"] = lambda: stream.stream(readers)
    return roads


def _simulated_roads(stream: StreamRoads, readers: int) -> dict[str, _Road]:
    limit = Pace(readers * TURN_IMAGES / TURN_SECONDS, 0.0)
    return {"simulated readers": lambda: limit, "stream, simulated": lambda: stream.simulated(readers)}


def _disk_and_store(disk: StreamRoads, store: StreamRoads, readers: int, chunk: int) -> dict[str, _Road]:
    return {
        "stream, disk": lambda: disk.stream(readers, chunk),
        "stream, object store": lambda: store.stream(readers, chunk),
        "stream, copied shards": lambda: store.copied(readers, chunk),
    }


@contextmanager
def _own_cache() -> Iterator[None]:
    """Use an empty cache of this node inside the context."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="rayface-bench-") as folder:
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE_VARIABLE]
            if before is not None:
                os.environ[CACHE_VARIABLE] = before


def _in_turn(
    roads: dict[str, _Road], rounds: int, readers: int, chunk: int | None, advance: Callable[[], None]
) -> list[RoadTimes]:
    """Run every pipeline once per round, in reverse order in every other round."""
    paces: dict[str, list[Pace]] = {name: [] for name in roads}
    for number in range(rounds):
        for name in list(roads)[:: -1 if number % 2 else 1]:
            paces[name].append(roads[name]())
        advance()
    first = next(iter(roads))
    ratios = {
        name: [pace.images_per_second / limit.images_per_second for pace, limit in zip(own, paces[first], strict=True)]
        for name, own in paces.items()
    }
    return [
        RoadTimes(
            road=name,
            readers=readers,
            chunk_images=chunk,
            images_per_second=statistics.median(pace.images_per_second for pace in own),
            cpu_microseconds=statistics.median(pace.cpu_microseconds for pace in own),
            ratio=None if name == first else statistics.median(ratios[name]),
        )
        for name, own in paces.items()
    ]
