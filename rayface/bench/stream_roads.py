"""Pipelines from images to normalised batches that the benchmark of the training stream measures."""

import hashlib
import itertools
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rayface.bench.pace import Pace, timed_pace
from rayface.bench.waiting_readers import IMAGE_SIZE, TURN_IMAGES, WaitingSamples
from rayface.bench.webdataset_loader import webdataset_batches
from rayface.config import Config
from rayface.data.dataset import Dataset
from rayface.data.decode import decode_image
from rayface.data.images import normalize
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.streaming.batches import train_batches
from rayface.data.streaming.dealer import deal
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.shared_samples import SharedSamples, share
from rayface.storage import node_cache, read_bytes

_WINDOWS_HELD = 3  # by training in the object store, beside one for each reader


@dataclass(frozen=True)
class StreamRoads:
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

    def copied(self, readers: int, chunk: int) -> Pace:
        """Read batches from an object store whose shards are copied to this node meanwhile, beginning with none."""
        shutil.rmtree(node_cache("shards"))
        samples = share(self.dataset, cache_size=sum(shard.num_bytes for shard in self.dataset.shards))
        return self._streamed(samples, self.order(chunk), self.config.data.image_size, readers, self.windows)

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


def moved(dataset: Dataset, uris: Sequence[str]) -> Dataset:
    """Return the dataset with other paths of its shards, and their sha256."""
    shards = [
        replace(shard, path=uri, sha256=shard.sha256 or hashlib.sha256(read_bytes(shard.path)).hexdigest())
        for shard, uri in zip(dataset.shards, uris, strict=True)
    ]
    return replace(dataset, shards=tuple(shards))
