"""Benchmark of the training stream: shards to normalised batches, against the decoder alone and against webdataset."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

import torch

from rayface.bench.pace import Pace, timed_pace
from rayface.bench.slow_store import slow_store
from rayface.bench.waiting_readers import IMAGE_SIZE, TURN_IMAGES, TURN_SECONDS, WaitingSamples
from rayface.bench.webdataset_loader import webdataset_batches
from rayface.config import Config
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.decode import decode_image
from rayface.data.images import normalize
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.streaming.batches import train_batches
from rayface.data.streaming.dealer import deal
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.shared_samples import SharedSamples, share
from rayface.machine import keep_freed_memory
from rayface.progress import phase
from rayface.session import ray_session
from rayface.storage import DataError, is_local

_WINDOWS_HELD = 3  # by training in the object store, beside one for each reader


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
    `chunks`, the stream from the disk and from a loopback object store with `latency`, with the largest number of
    readers.

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
        with ray_session(num_cpus=settings.most_readers + 1, exact=True), phase("measure rounds", parts=total) as done:
            stream = _Stream(dataset, config, settings.windows)
            for readers in settings.readers:
                roads = _roads(stream, readers)
                found += _in_turn(roads, settings.rounds, readers, None, done.advance)
            for readers in settings.simulated:
                found += _in_turn(_simulated_roads(stream, readers), settings.rounds, readers, None, done.advance)
            if settings.chunks:
                with slow_store(dataset.shard_paths(), settings.latency) as uris:
                    remote = replace(stream, dataset=_moved(dataset, uris))
                    for chunk in settings.chunks:
                        pair = _disk_and_store(stream, remote, max(settings.readers), chunk)
                        found += _in_turn(pair, settings.rounds, max(settings.readers), chunk, done.advance)
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


def _roads(stream: "_Stream", readers: int) -> dict[str, _Road]:
    """Return the pipelines by name; the first one is the reference."""
    roads: dict[str, _Road] = {"decoder": lambda: stream.decoder(readers)}
    if find_spec("webdataset") is not None:
        roads["webdataset"] = lambda: stream.webdataset(readers)
    roads["stream"] = lambda: stream.stream(readers)
    return roads


def _simulated_roads(stream: "_Stream", readers: int) -> dict[str, _Road]:
    limit = Pace(readers * TURN_IMAGES / TURN_SECONDS, 0.0)
    return {"simulated readers": lambda: limit, "stream, simulated": lambda: stream.simulated(readers)}


def _disk_and_store(disk: "_Stream", store: "_Stream", readers: int, chunk: int) -> dict[str, _Road]:
    return {
        "stream, disk": lambda: disk.stream(readers, chunk),
        "stream, object store": lambda: store.stream(readers, chunk),
    }


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


@dataclass(frozen=True)
class _Stream:
    """The pipelines of one dataset, each on `windows` windows."""

    dataset: Dataset
    config: Config
    windows: int

    def order(self, chunk: int | None = None) -> SampleOrder:
        return SampleOrder(
            num_samples=len(self.dataset.index),
            batch_size=self.config.train.batch_size,
            chunk_images=chunk or self.config.data.chunk_images,
            window_images=self.config.data.window_images,
        )

    def decoder(self, threads: int) -> Pace:
        """Decode the images of a window repeatedly, from memory."""
        samples = read_samples(self.dataset.shard_paths(), self.dataset.index.select(self.order().window(0).ravel()))
        images = [sample.jpeg for sample in samples if isinstance(sample, Sample)]

        def decode(part: list[bytes]) -> None:
            for image in part:
                decode_image(image, self.config.data.image_size)

        with ThreadPoolExecutor(threads) as pool, timed_pace() as timed:
            for _ in range(self.windows):
                list(pool.map(decode, [images[first::threads] for first in range(threads)]))
        return timed(self.windows * len(images))

    def stream(self, readers: int, chunk: int | None = None) -> Pace:
        """Read batches like a training worker."""
        size = self.config.data.image_size
        return self._streamed(share(self.dataset), self.order(chunk), size, readers, self.windows)

    def simulated(self, readers: int) -> Pace:
        """Read batches of readers that wait instead of decoding, `windows` turns of each."""
        shared = share(self.dataset)
        order = replace(self.order(), window_images=TURN_IMAGES)
        samples = WaitingSamples(shared.paths, shared.columns)
        return self._streamed(samples, order, IMAGE_SIZE, readers, self.windows * readers)

    def _streamed(
        self, samples: SharedSamples, order: SampleOrder, image_size: int, readers: int, windows: int
    ) -> Pace:
        """Time `windows` windows in the middle of a stream.

        Before them, as many are read as the object store holds: it takes its memory from the system, once. After them,
        all readers have one more, so that none waits while others are timed.
        """
        start, last = readers + _WINDOWS_HELD, readers + _WINDOWS_HELD + windows
        dealt = deal(
            samples,
            order,
            image_size=image_size,
            world_size=1,
            start=0,
            stop=order.steps_of(last + readers).stop,
            readers=readers,
            reserved={"CPU": 1.0},
            early=False,
            local=True,
        )
        steps = range(order.steps_of(start).start, order.steps_of(last).start)
        batches = train_batches(dealt, 0)
        for _ in itertools.islice(batches, steps.start):
            pass
        with timed_pace() as timed:
            for batch in itertools.islice(batches, len(steps)):
                normalize(batch.images)
        for _ in batches:
            pass
        return timed(len(steps) * order.batch_size)

    def webdataset(self, workers: int) -> Pace:
        """Read batches with webdataset and PyTorch's DataLoader."""
        batch_size = self.config.train.batch_size
        num_batches = self.windows * self.order().window_steps
        paths = self.dataset.shard_paths()
        with (
            webdataset_batches(paths, batch_size=batch_size, workers=workers, num_batches=num_batches) as batches,
            timed_pace() as timed,
        ):
            for images in batches:
                images.sub_(0.5).div_(0.5)
        return timed(num_batches * batch_size)


def _moved(dataset: Dataset, uris: Sequence[str]) -> Dataset:
    """Return the dataset with other paths of its shards."""
    shards = [replace(shard, path=uri) for shard, uri in zip(dataset.shards, uris, strict=True)]
    return replace(dataset, shards=tuple(shards))
