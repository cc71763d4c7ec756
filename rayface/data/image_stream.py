"""Images of a dataset as a PyTorch IterableDataset, split over ranks and DataLoader workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypedDict, TypeVar, Unpack

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from rayface.data.dataset import Dataset
from rayface.data.decode import decode_image
from rayface.data.images import normalize
from rayface.data.ordered_images import OrderedImage, read_in_order
from rayface.data.shards.copies import copy_rules
from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import Fault
from rayface.data.streaming.fault_counter import FaultCounter
from rayface.data.streaming.orders import order_samples
from rayface.data.streaming.sample_order import Ids

_CHUNK_IMAGES = 8  # as in training, see SampleOrder

Item = TypeVar("Item", covariant=True)
logger = logging.getLogger(__name__)


class StreamOptions(TypedDict, total=False):
    """Options of ImageStream, described there."""

    shuffle: bool
    seed: int
    rank: int | None
    world_size: int | None
    equal_parts: bool
    window_images: int
    max_corrupt_fraction: float
    cache_size: int | None


class ImageStream(IterableDataset[Item], Generic[Item]):
    """Each image of a dataset once an epoch, over all ranks and DataLoader workers together.

    Args:
        dataset: result of `open_dataset`; kept in memory once, workers started by fork share it.
        decode: makes an item of an image; a ValueError counts the image as corrupt.
        shuffle: permute the images; the order depends on `seed` and the epoch.
        rank, world_size: default: those of torch.distributed if it is initialised, else 0 and 1.
        equal_parts: every worker of every rank yields the same number of images, as DistributedDataParallel needs;
            fewer than ranks x workers images are left out, with `shuffle` other ones in each epoch.
        window_images: images that a worker reads at once and, with `shuffle`, permutes among each other.
        max_corrupt_fraction: corrupt images are logged and left out; a worker that finds more than this fraction of the
            dataset's images stops.
        cache_size: maximum bytes of copies of an object store's shards on this node, see `data.cache_size`; None: read
            the store in every epoch.

    Raises:
        ValueError: a rank outside of the world.
        DataError: while reading: too many corrupt images, or a shard is missing; one line.
    """

    def __init__(
        self,
        dataset: Dataset,
        decode: Callable[[OrderedImage], Item],
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        equal_parts: bool = False,
        window_images: int = 4096,
        max_corrupt_fraction: float = 1e-3,
        cache_size: int | None = None,
    ) -> None:
        ranks = dist.is_available() and dist.is_initialized()
        self._rank = rank if rank is not None else dist.get_rank() if ranks else 0
        self._world_size = world_size if world_size is not None else dist.get_world_size() if ranks else 1
        if not 0 <= self._rank < self._world_size:
            raise ValueError(f"rank {self._rank}: must be from 0 to world_size - 1 = {self._world_size - 1}")
        self._dataset = dataset
        self._decode = decode
        self._shuffle = shuffle
        self._equal_parts = equal_parts
        self._window_images = window_images
        self._max_corrupt_fraction = max_corrupt_fraction
        self._copy_rules = None if cache_size is None else copy_rules(dataset.shards, cache_size)
        self._order = order_samples(
            dataset, batch_size=1, seed=seed, chunk_images=_CHUNK_IMAGES, window_images=window_images
        )
        # Shared memory: persistent workers, which hold a copy of this object, see the epoch too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; call it before each epoch, as for DistributedSampler."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the number of images of this rank in an epoch; `equal_parts` leaves out a few more."""
        return len(self._part(self._rank, self._world_size))

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        part = self._part(self._rank * workers + own, self._world_size * workers)
        dataset, index = self._dataset, self._dataset.index
        counter = FaultCounter(dataset.num_images, self._max_corrupt_fraction, known=dataset.faults)
        with SampleReader(dataset.shard_paths(), self._copy_rules) as reader:
            for ids in self._windows(part):
                for item in read_in_order(reader, index, ids, dataset.key_prefixes, self._decode):
                    if isinstance(item, Fault):
                        for fault in counter.add([item]):
                            logger.warning("%s", fault)
                    else:
                        yield item

    def _part(self, number: int, parts: int) -> range:
        """Return the positions in the order of an epoch that one of several equal readers reads."""
        count = self._dataset.num_images
        if self._equal_parts:
            count -= count % parts
        return range(number * count // parts, (number + 1) * count // parts)

    def _windows(self, part: range) -> Iterator[Ids]:
        """Yield the positions in the index of a part of the epoch's order, a window at a time."""
        epoch, size = int(self._epoch), self._order.window_steps
        for number in range(part.start // size, -(-part.stop // size)):
            start = number * size
            inside = slice(max(part.start - start, 0), part.stop - start)
            if self._shuffle:
                yield self._order.window(epoch * self._order.windows_per_epoch + number).ravel()[inside]
            else:
                yield np.arange(max(part.start, start), min(part.stop, start + size))


def tensor_stream(
    dataset: Dataset,
    *,
    image_size: int | None,
    transform: Callable[[NDArray[np.uint8]], torch.Tensor] | None,
    **options: Unpack[StreamOptions],
) -> ImageStream[tuple[torch.Tensor, int]]:
    """Return a stream of (image, label); see `Dataset.to_torch`."""
    if image_size is None:
        height, width = dataset.about.image_size or (0, 0)
        if not height or height != width:
            raise ValueError(
                f"image_size: the images of {', '.join(dataset.roots)} are not squares of one size: give it"
            )
        image_size = height
    return ImageStream(dataset, partial(_tensor_and_label, image_size=image_size, transform=transform), **options)


def _tensor_and_label(
    image: OrderedImage, *, image_size: int, transform: Callable[[NDArray[np.uint8]], torch.Tensor] | None
) -> tuple[torch.Tensor, int]:
    pixels = decode_image(image.data, image_size)
    tensor = normalize(torch.from_numpy(pixels)[None])[0] if transform is None else transform(pixels)
    return tensor, image.label
