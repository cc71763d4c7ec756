"""Datasets of tar shards: one or several directories opened as one, with an index of every sample."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayface.credentials import recall
from rayface.data.classes import num_with_images
from rayface.data.directory import Part, load_part
from rayface.data.index import count
from rayface.data.joint import distinct_names, join_descriptions, join_indices, join_parts, joint_digest
from rayface.data.keys import find_keys, key_hashes, prefixed, read_keys, repeated_key
from rayface.data.label_join import Join
from rayface.data.manifest import Description, recount
from rayface.data.shards.samples import Fault, SampleIndex
from rayface.storage import DataError, join, normalise, refuse_repeated, remember_server

if TYPE_CHECKING:
    import ray.data
    import torch

    from rayface.data.image_stream import ImageStream, StreamOptions
    from rayface.data.webdataset_pipeline import ImagePipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar file: absolute path or URI, number of samples and bytes, and its digest if it is known.

    `key_prefix` is what the index of its directory prepends to its own keys; see Dataset.key_prefixes.
    """

    path: str
    num_images: int
    num_bytes: int
    sha256: str | None
    key_prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class KeyFile:
    """The parquet file with the keys of a directory's samples, and its valid rows in rising order (None: all)."""

    path: str
    rows: NDArray[np.int64] | None
    num_shards: int

    def batches(self) -> Iterator[pa.Array]:
        return read_keys(self.path, self.rows)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One or several dataset directories as one label space; small to send except for `index`.

    Attributes:
        about: what the directories say about themselves.
        index: the readable samples in shard order.
        identities: names by label, None if there are none.
        faults: found while opening.
        digest: sha256 of the content, labels included.
        join: how labels of several directories became one label space; None for one directory.
        join_text: one line about it.
    """

    roots: tuple[str, ...]
    about: Description
    num_classes: int
    shards: tuple[Shard, ...]
    index: SampleIndex = field(repr=False)
    identities: tuple[str, ...] | None = field(repr=False)
    faults: tuple[Fault, ...]
    digest: str
    join: Join | None = None
    join_text: str | None = None
    key_files: tuple[KeyFile, ...] = field(repr=False, default=())

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def num_images(self) -> int:
        return len(self.index)

    @functools.cached_property
    def num_classes_with_images(self) -> int:
        """Number of classes with images."""
        return num_with_images(self.index.label, self.num_classes)

    def root_sizes(self) -> list[int]:
        """Return the number of images of each directory, which are one after the other in the index."""
        ends = np.cumsum([file.num_shards for file in self.key_files])
        before = [int(np.count_nonzero(self.index.shard < end)) for end in ends]
        return np.diff([0, *before]).tolist()

    def shard_paths(self) -> list[str]:
        """Return the paths that `index.shard` refers to, for read_samples."""
        return [shard.path for shard in self.shards]

    def keys(self) -> list[str]:
        """Return the key of every sample in index order. Memory: about 100 bytes each."""
        return [key for keys in self.key_batches() for key in keys.to_pylist()]

    def key_batches(self) -> Iterator[pa.Array]:
        """Yield the keys of all samples in index order, in batches read from the index files.

        A key is unique in the dataset: the sample's own key in its shard; SHARD/KEY if shards of a directory share
        keys; DIRECTORY/... if directories opened as one do.
        """
        for prefix, file in zip(self._root_prefixes, self.key_files, strict=True):
            for keys in file.batches():
                yield prefixed(prefix, keys)

    @functools.cached_property
    def key_prefixes(self) -> tuple[str, ...]:
        """What to prepend to a shard's own keys to get those of the dataset, by shard."""
        roots = [
            root for root, file in zip(self._root_prefixes, self.key_files, strict=True) for _ in range(file.num_shards)
        ]
        return tuple(root + shard.key_prefix for root, shard in zip(roots, self.shards, strict=True))

    def own_key_batches(self) -> Iterator[pa.Array]:
        """Yield the keys as stored in the shards, in index order; with prefixes they are not unique."""
        prefixes, done = self.key_prefixes, 0
        for keys in self.key_batches():
            shards = self.index.shard[done : done + len(keys)]
            done += len(keys)
            starts = np.flatnonzero(np.r_[True, shards[1:] != shards[:-1]]).tolist()
            for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True):
                length = len(prefixes[shards[start]])
                yield (
                    pc.utf8_slice_codeunits(keys.slice(start, stop - start), length)
                    if length
                    else keys.slice(start, stop - start)
                )

    def find(self, keys: Iterable[pa.Array]) -> NDArray[np.int64]:
        """Return the positions of keys in the index, -1 for a key that is not there. Memory: see find_keys."""
        return find_keys(keys, self.key_batches())[0]

    def to_torch(
        self,
        *,
        image_size: int | None = None,
        transform: Callable[[NDArray[np.uint8]], torch.Tensor] | None = None,
        **options: Unpack[StreamOptions],
    ) -> ImageStream[tuple[torch.Tensor, int]]:
        """Open the dataset as a `torch.utils.data.IterableDataset` of (image, label), for a DataLoader.

        Args:
            image_size: side of the images in pixels; default: that of the dataset, if all images have one.
            transform: takes uint8 RGB (S, S, 3), returns the image; default: float32 (3, S, S) in [-1, 1].
            options: shuffle, seed, rank, world_size, equal_parts and more, see `ImageStream`.

        Raises:
            ValueError: the images have no common size and `image_size` is not given.
        """
        from rayface.data.image_stream import tensor_stream

        return tensor_stream(self, image_size=image_size, transform=transform, **options)

    def to_webdataset(self, **options: Unpack[StreamOptions]) -> ImagePipeline:
        """Open the dataset as a pipeline of the `webdataset` library: samples `__key__`, `jpg` and `cls`, not decoded.

        Args:
            options: shuffle, seed, rank, world_size, equal_parts and more, see `ImageStream`.

        Raises:
            ValueError: the library is not installed.
        """
        from rayface.data.webdataset_pipeline import open_pipeline

        return open_pipeline(self, **options)

    def to_ray(self, *, image_size: int | None = None, max_corrupt_fraction: float = 1e-3) -> ray.data.Dataset:
        """Open the dataset as a Ray Dataset of `key`, `label` and `image`; Ray must be running.

        Moves the index into Ray's object store. Corrupt images are logged and left out. Rows are in the order of the
        index where `DataContext.get_current().execution_options.preserve_order` is set, else in that of completion.

        Args:
            image_size: side of the decoded images in pixels, uint8 RGB (S, S, 3); None: `image` is the file's bytes.
            max_corrupt_fraction: a block that lost more than this fraction of the dataset's images is an error.
        """
        from rayface.data.ray_dataset import open_ray_dataset

        return open_ray_dataset(self, image_size=image_size, max_corrupt_fraction=max_corrupt_fraction)

    @functools.cached_property
    def _root_prefixes(self) -> tuple[str, ...]:
        """What to prepend to the keys of each directory's index.

        Raises:
            DataError: two samples of an index have one key.
        """
        hashes = [key_hashes(file.batches()) for file in self.key_files]
        batches = itertools.chain.from_iterable(file.batches() for file in self.key_files)
        if repeated_key(np.concatenate(hashes), batches) is None:
            return ("",) * len(self.roots)
        for root, file, own in zip(self.roots, self.key_files, hashes, strict=True):
            if (key := repeated_key(own, file.batches())) is not None:
                raise DataError(f"{root}: key {key!r} is of several samples in the index; {recount(root)}")
        return tuple(f"{name}/" for name in distinct_names(self.roots))


def open_dataset(
    paths: str | Path | Sequence[str | Path],
    *,
    max_corrupt_fraction: float = 1e-3,
    join: Join | None = None,
) -> Dataset:
    """Open one or several dataset directories (local or URI) as one dataset.

    Directories without dataset.json are scanned once, in parallel, and cached. Memory: 20 bytes a sample, 24 if labels
    are joined, 8 more if samples are lost; at most 30 while it is opened.

    Args:
        join: how labels of several directories are joined, see join_labels; the result is logged.

    Raises:
        DataError: a missing folder, no shards, a corrupt manifest, labels that cannot be joined without `join`, or more
            than `max_corrupt_fraction` of all samples lost; one line.
    """
    if not 0 <= max_corrupt_fraction <= 1:
        raise ValueError(f"data.max_corrupt_fraction {max_corrupt_fraction}: must be from 0 to 1")
    roots = _checked_roots([paths] if isinstance(paths, str | Path) else paths)
    parts = [load_part(root) for root in roots]
    faults = [fault for part in parts for fault in part.faults]
    num_images = sum(len(part) for part in parts)
    refuse_corruption(faults, num_images, max_corrupt_fraction)
    if num_images == 0:
        raise DataError(f"{', '.join(roots)}: the dataset has no samples")
    joined = join_parts(parts, join)
    if joined.text:
        logger.info("%s", joined.text)
    return Dataset(
        roots=tuple(roots),
        about=join_descriptions(parts),
        num_classes=joined.num_classes,
        shards=tuple(shard for part in parts for shard in _shards(part)),
        index=join_indices(parts, joined.maps),
        identities=joined.identities,
        faults=tuple(faults),
        digest=joint_digest(parts, joined),
        join=joined.mode,
        join_text=joined.text,
        key_files=tuple(
            KeyFile(path=part.keys_file, rows=part.rows, num_shards=len(part.manifest.shards)) for part in parts
        ),
    )


def _checked_roots(paths: Sequence[str | Path]) -> list[str]:
    roots = [normalise(path) for path in paths]
    if not roots:
        raise ValueError("data: no dataset directory is given")
    refuse_repeated(roots, "data")
    for root in roots:  # before any manifest is read: a selection may name the server of a later directory
        remember_server(root)
    return roots


def refuse_corruption(faults: Sequence[Fault], num_good: int, max_corrupt_fraction: float) -> None:
    """Raise DataError if `faults` lost more samples than the allowed fraction of all."""
    lost = sum(fault.num_lost for fault in faults)
    total = num_good + lost
    if lost > max_corrupt_fraction * total:
        first = next(fault for fault in faults if fault.num_lost)
        raise DataError(
            f"{lost} of {total} samples are corrupt, more than data.max_corrupt_fraction={max_corrupt_fraction:g} "
            f"allows; the first: {first}; repair the shards (`rayface check` names every fault) or raise "
            "data.max_corrupt_fraction"
        )


def _shards(part: Part) -> list[Shard]:
    counts = count(part.columns["shard"], len(part.manifest.shards)).tolist()
    # Of a selection: with the credentials of its source, which workers cannot know otherwise.
    paths = [recall(join(part.root, entry.path)) for entry in part.manifest.shards]
    return [
        Shard(path=path, num_images=count, num_bytes=entry.num_bytes, sha256=entry.sha256, key_prefix=entry.key_prefix)
        for entry, path, count in zip(part.manifest.shards, paths, counts, strict=True)
    ]
