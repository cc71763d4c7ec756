"""Convert a source of images to a dataset of tar shards: labels, keys, order, faults; the same for every source."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from rayface.data.dataset import Dataset
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import DatasetSource
from rayface.data.sources.faults import FaultLog
from rayface.data.sources.listed_images import ListedImages, list_source
from rayface.data.sources.reading import map_ordered, read_images, read_in_order
from rayface.data.writer import DEFAULT_SHARD_SIZE, ShardWriter, refuse_not_empty
from rayface.progress import phase
from rayface.storage import DataError, is_local, make_folder, normalise, split


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Settings of a conversion.

    Attributes:
        layout: order of the images: "shuffled" as a whole, or "by_identity".
        shard_size: maximum bytes of a shard.
        seed: seed of the order; the same seed gives the same bytes.
        name: name of the dataset; None: that of its folder.

    Raises:
        ValueError: an unknown layout.
    """

    layout: Literal["shuffled", "by_identity"] = "shuffled"
    shard_size: int = DEFAULT_SHARD_SIZE
    seed: int = 0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.layout not in ("shuffled", "by_identity"):
            raise ValueError(f"layout {self.layout!r}: must be shuffled or by_identity")


def convert(
    source: DatasetSource,
    out: str | Path,
    settings: ConvertSettings | None = None,
) -> Dataset:
    """Convert all images of a source to a dataset in the folder `out`.

    A first pass lists the images. Unless the source decodes them then, a second pass searches a readable image of each
    identity. The last pass reads all images in their final order. Every identity has at least one image. Everything
    that is skipped is among the faults of the returned dataset, with the reason as `kind`.

    Memory: the source's listing, and two chunks of 256 images.

    Raises:
        DataError: no image, an output folder that is not empty, or a source that cannot be read; one line.
    """
    settings = settings or ConvertSettings()
    target = normalise(out)
    with _output_folder(target), contextlib.closing(source):
        source.prepare(os.path.dirname(target) if is_local(target) else None)
        faults = FaultLog(source.root)
        images = list_source(source, faults)
        if not source.decodes_listed:
            images = _without_empty_identities(source, images, faults)
        return _write(source, images, target, settings, faults)


@contextlib.contextmanager
def _output_folder(folder: str) -> Iterator[None]:
    """Create the folder before the work starts; after an error, remove it if it is new and still empty."""
    is_new = is_local(folder) and not os.path.exists(folder)
    make_folder(folder)
    refuse_not_empty(folder)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise


def _without_empty_identities(source: DatasetSource, images: ListedImages, faults: FaultLog) -> ListedImages:
    """Remove identities without a readable image."""
    order = np.argsort(images.labels, kind="stable")
    bounds = np.searchsorted(images.labels[order], np.arange(len(images.identities) + 1)).tolist()

    def refused(label: int) -> list[Fault]:
        """Return why no image can be read; nothing as soon as one can."""
        found = []
        for number in order[bounds[label] : bounds[label + 1]]:
            (piece,) = images.pieces(number[None])
            (image,) = read_images(source, piece.part, piece.images)
            if not isinstance(image, Fault):
                return []
            found.append(image)
        return found

    empty: dict[int, list[Fault]] = {}
    with phase("check identities", parts=len(images.identities)) as current:
        for label, why in map_ordered(refused, range(len(images.identities))):
            if why:
                empty[label] = why
            current.advance()
    if len(empty) == len(images.identities):
        raise DataError(f"{source.root}: none of {len(images)} files can be read; the first: {empty[0][0]}")
    for label, why in empty.items():
        reason, name = "no image of this identity can be read", str(images.identities[label])
        for fault in [*why, Fault(shard=source.root, member=name, offset=0, reason=reason, kind="identity")]:
            faults.add(fault)
    return images.without_identities(list(empty))


def _write(
    source: DatasetSource, images: ListedImages, target: str, settings: ConvertSettings, faults: FaultLog
) -> Dataset:
    """Write all images in their final order; images that have become unreadable are faults."""
    if settings.layout == "shuffled":
        order = np.random.default_rng(settings.seed).permutation(len(images))
    else:
        order = np.argsort(images.labels, kind="stable")
    side = source.settings.image_size
    names = [name for name in images.identities if isinstance(name, str)]
    labels = [label for label in images.identities if isinstance(label, int)]
    with ShardWriter(
        target,
        name=settings.name or split(target)[1],
        identities=names or source.identity_names(labels),
        num_classes=len(images.identities),
        image_size=(side, side) if side else images.image_size,
        layout=settings.layout,
        source=source.title,
        shard_size=settings.shard_size,
    ) as writer:
        keys = pa.array(source.unique_keys(images.keys()), pa.large_string())
        with phase("convert images", parts=len(images), rows=len(images)) as current:
            for number, image in read_in_order(source, images, order):
                if isinstance(image, Fault):
                    faults.add(image)
                else:
                    writer.add(keys[number].as_py(), int(images.labels[number]), image)
                current.advance()
        if not writer.counts.all():
            lost = images.identities[int(np.argmin(writer.counts))]
            raise DataError(f"{source.root}: {lost}: its images could be read before and not any more; run it again")
        return dataclasses.replace(writer.finish(), faults=tuple(faults.faults()))
