"""A dataset as a Ray Dataset: images are read and decoded by Ray's tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from rayface.data.dataset import Dataset
from rayface.data.decode import decode_image
from rayface.data.ordered_images import OrderedImage, read_in_order
from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import Fault
from rayface.data.streaming.fault_counter import FaultCounter
from rayface.data.streaming.shared_samples import SharedSamples, share

_BLOCK_IMAGES = 1024  # 38 MB of decoded images of 112 pixels
Columns = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


def open_ray_dataset(dataset: Dataset, *, image_size: int | None, max_corrupt_fraction: float) -> ray.data.Dataset:
    """Return the images of a dataset; see `Dataset.to_ray`."""
    reader = _Reader(
        samples=share(dataset),
        key_prefixes=ray.put(dataset.key_prefixes),
        num_images=dataset.num_images,
        image_size=image_size,
        max_corrupt_fraction=max_corrupt_fraction,
    )
    blocks = -(-dataset.num_images // _BLOCK_IMAGES)
    positions = ray.data.range(dataset.num_images, override_num_blocks=blocks)
    return positions.map_batches(reader.read, batch_size=None)


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Reads images at positions of the index; runs in Ray's tasks, which share the index of their node."""

    samples: SharedSamples
    key_prefixes: ray.ObjectRef
    num_images: int
    image_size: int | None
    max_corrupt_fraction: float

    def read(self, rows: Columns) -> Columns:
        """Return the columns of the images at the positions `id`."""
        shards, index = self.samples.get()
        prefixes: tuple[str, ...] = ray.get(self.key_prefixes)
        counter = FaultCounter(self.num_images, self.max_corrupt_fraction)
        found: list[tuple[str, int, np.ndarray | bytes]] = []
        with SampleReader(shards) as reader:
            for item in read_in_order(reader, index, rows["id"], prefixes, self._decode):
                if not isinstance(item, Fault):
                    found.append(item)
                elif counter.add([item]):
                    logger.warning("%s", item)
        keys, labels, images = zip(*found, strict=True) if found else ((), (), ())
        pixels = np.array(images, object) if self.image_size is None else _stacked(images, self.image_size)
        return {"key": np.array(keys, object), "label": np.array(labels, np.int64), "image": pixels}

    def _decode(self, image: OrderedImage) -> tuple[str, int, np.ndarray | bytes]:
        decoded = image.data if self.image_size is None else decode_image(image.data, self.image_size)
        return image.key, image.label, decoded


def _stacked(images: Sequence[np.ndarray | bytes], size: int) -> np.ndarray:
    return np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
