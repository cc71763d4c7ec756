"""A small dataset that every target is tested with."""

from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from rayface.data.dataset import Dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.writer import write_dataset


def jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


PNG = cv2.imencode(".png", np.full((16, 16, 3), 9, np.uint8))[1].tobytes()
SAMPLES = [("x/0", 0, jpeg(0)), ("x_0", 0, jpeg(1)), ("y", 2, PNG), ("z", 1, jpeg(2)), ("w", 2, jpeg(3))]


def dataset_of(folder: Path, identities: list[str] | None = None) -> Dataset:
    names = ["ann", "bob", "cy"] if identities is None else identities
    return write_dataset(folder, SAMPLES, name="set", identities=names, image_size=(16, 16), shard_size=6000)


def by_name(dataset: Dataset) -> list[tuple[str, bytes]]:
    assert dataset.identities is not None
    found = read_samples(dataset.shard_paths(), dataset.index)
    return sorted((dataset.identities[s.label], s.jpeg) for s in found if isinstance(s, Sample))
