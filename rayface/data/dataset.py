"""Datasets of tar shards: open one or several directories as one, with an index of every sample."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
from rayface.data.manifest import RECOUNT, Description
from rayface.data.shards.samples import Fault, SampleIndex
from rayface.storage import DataError, join, normalise

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar file: absolute path or URI, samples and bytes as counted, and its digest where it is known.

    `key_prefix` stands before its own keys in the index of its directory; see Dataset.key_prefixes.
    """

    path: str
    num_images: int
    num_bytes: int
    sha256: str | None
    key_prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class KeyFile:
    """Where the keys of a directory's samples are: a parquet file, and the rows of it that count, rising; None: all."""

    path: str
    rows: NDArray[np.int64] | None
    num_shards: int

    def batches(self) -> Iterator[pa.Array]:
        return read_keys(self.path, self.rows)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One or several dataset directories as one label space; small enough to send to workers but for `index`.

    `index` holds the readable samples in shard order; `identities` are names by label, or None;
    `faults` were found while opening; `digest` names the content, labels included, for provenance. `join` is how labels
    of several directories became one label space, `join_text` one line about it; None for one.
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
        """Classes that have an image; labels may have holes."""
        return num_with_images(self.index.label, self.num_classes)

    def shard_paths(self) -> list[str]:
        """Return the paths that `index.shard` counts, as read_samples wants them."""
        return [shard.path for shard in self.shards]

    def keys(self) -> list[str]:
        """Return the key of every sample in index order (about 100 bytes of memory each)."""
        return [key for keys in self.key_batches() for key in keys.to_pylist()]

    def key_batches(self) -> Iterator[pa.Array]:
        """Yield the keys of all samples in index order, some at a time, read from the index files.

        A key is unique in the dataset. It is the sample's own in its shard, or SHARD/KEY where shards of a directory
        have the same ones, and DIRECTORY/... where directories that are opened as one have.
        """
        for prefix, file in zip(self._root_prefixes, self.key_files, strict=True):
            for keys in file.batches():
                yield prefixed(prefix, keys)

    @functools.cached_property
    def key_prefixes(self) -> tuple[str, ...]:
        """What stands before a shard's own keys to make them those of the dataset, by shard."""
        roots = [
            root for root, file in zip(self._root_prefixes, self.key_files, strict=True) for _ in range(file.num_shards)
        ]
        return tuple(root + shard.key_prefix for root, shard in zip(roots, self.shards, strict=True))

    def own_key_batches(self) -> Iterator[pa.Array]:
        """Yield what the shards themselves call their samples, in index order; not unique where keys have prefixes."""
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
        """Return where samples are in the index, by their keys, -1 where there is none. Memory: see find_keys."""
        return find_keys(keys, self.key_batches())[0]

    @functools.cached_property
    def _root_prefixes(self) -> tuple[str, ...]:
        """What stands before the keys of each directory's index; looked for once, as only few need keys.

        Raises:
            DataError: an index that names two samples alike.
        """
        hashes = [key_hashes(file.batches()) for file in self.key_files]
        batches = itertools.chain.from_iterable(file.batches() for file in self.key_files)
        if repeated_key(np.concatenate(hashes), batches) is None:
            return ("",) * len(self.roots)
        for root, file, own in zip(self.roots, self.key_files, hashes, strict=True):
            if (key := repeated_key(own, file.batches())) is not None:
                raise DataError(f"{root}: key {key!r} is of several samples in the index; {RECOUNT.format(root)}")
        return tuple(f"{name}/" for name in distinct_names(self.roots))


def open_dataset(
    paths: str | Path | Sequence[str | Path],
    *,
    max_corrupt_fraction: float = 1e-3,
    join: Join | None = None,
) -> Dataset:
    """Open one or several dataset directories (local or URI) as one dataset.

    Labels of several are joined as `join` says, see join_labels; how is logged.
    Directories without dataset.json are scanned once, in parallel, and remembered in the user's cache.
    Raises DataError, one line, for a missing folder, no shards, a damaged manifest, labels of which it is not clear how
    they are joined, or where more than
    `max_corrupt_fraction` of all samples are lost. Memory: 20 bytes a sample, 24 where labels
    are joined, and 8 more where samples are lost; never above 30 on the way.
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
    digest = joint_digest(parts, joined)
    return Dataset(
        roots=tuple(roots),
        about=join_descriptions(parts),
        num_classes=joined.num_classes,
        shards=tuple(shard for part in parts for shard in _shards(part)),
        index=join_indices(parts, joined.maps),
        identities=joined.identities,
        faults=tuple(faults),
        digest=digest,
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
    if len(set(roots)) != len(roots):
        raise ValueError(f"data: {next(r for r in roots if roots.count(r) > 1)} is given twice")
    return roots


def refuse_corruption(faults: Sequence[Fault], num_good: int, max_corrupt_fraction: float) -> None:
    """Raise DataError where the samples lost by `faults` are more than the fraction allowed of all there were."""
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
    # Of a selection with the credentials of its source, which workers have no other way to know.
    paths = [recall(join(part.root, entry.path)) for entry in part.manifest.shards]
    return [
        Shard(
            path=path,
            num_images=count,
            num_bytes=entry.num_bytes,
            sha256=entry.sha256,
            key_prefix=entry.key_prefix,
        )
        for entry, path, count in zip(part.manifest.shards, paths, counts, strict=True)
    ]
