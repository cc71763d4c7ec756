"""Dataset of a core set's images: an index of the source's shards, or new shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from rayface.arrays import Ints
from rayface.curate.prune.result import DatasetCounts
from rayface.data.dataset import Dataset
from rayface.data.keys import read_keys
from rayface.data.manifest import UNFINISHED
from rayface.data.selection import (
    Selection,
    select,
    write_selected_shard,
    write_selection,
    write_shards_manifest,
)
from rayface.data.shards.samples import ShardRows
from rayface.data.shards.scan import ShardScan
from rayface.embedding.embeddings import Embeddings
from rayface.embedding.rows import read_labels
from rayface.ray_tasks import map_unordered
from rayface.storage import DataError, join, split, write_bytes
from rayface.storage.parquet import read_table

_UNSAFE = r"(^|[/\\])\.\.([/\\]|$)|^[/\\]|[\x00-\x1f]"  # as is_safe_name has it


@dataclass(frozen=True, kw_only=True)
class _WrittenShard:
    number: int
    scan: ShardScan


def write_pruned(
    root: str,
    source: Dataset,
    core_set: Path,
    *,
    merged: Mapping[int, int],
    write_shards: bool,
) -> DatasetCounts:
    """Write the kept images as a dataset into `root`, a path or URI.

    Args:
        merged: new labels of merged identities.

    Memory, on the driver: about 100 bytes per image of the core set, whatever its key.

    Raises:
        DataError: a key is not in the source, or has another label there.
    """
    selection, known = _select(core_set, source, merged)
    return write_dataset(root, selection, known, write_shards=write_shards)


def write_dataset(root: str, selection: Selection, known: int, *, write_shards: bool) -> DatasetCounts:
    """Write selected samples as a dataset into `root`, a path or URI, of its own shards or as an index of the source's.

    Args:
        known: number of the source's images that are embedded.
    """
    name = split(root)[1]
    dataset = _write_shards(root, selection, name) if write_shards else write_selection(root, selection, name=name)
    return DatasetCounts(
        images=dataset.num_images,
        classes=dataset.num_classes,
        shards=len(dataset.shards),
        not_embedded=selection.source.num_images - known,
    )


def check_data(embeddings: Embeddings, source: Dataset, key: str = "prune.data") -> None:
    """Raise DataError if the first embedded images are not in the source; runs before the selection."""
    file = next(file for file in embeddings.files if file.num_rows)
    keys = next(read_labels(file))[0]
    refuse_missing(source.find([keys]), [keys], source, key)


def check_copied(source: Dataset, group: str = "prune") -> None:
    """Raise DataError if a key of the source is a path outside of the folder in which a shard is unpacked.

    Foreign shards are read whatever their keys; shards written by rayface are safe to unpack.
    """
    for keys in source.key_batches():
        unsafe = keys.filter(pc.match_substring_regex(keys, _UNSAFE))
        if len(unsafe):
            raise DataError(
                f"{group}.write_shards: {', '.join(source.roots)}: key {unsafe[0].as_py()!r}: is a path outside of the "
                f"shard's folder: leave {group}.write_shards out, or embed a copy of the data that `rayface convert "
                "--from webdataset` makes"
            )


def refuse_missing(places: Ints, keys: Iterable[pa.Array], source: Dataset, key: str = "prune.data") -> None:
    """Raise DataError if a key has no place (-1) in the source; `key` is the config key that names the source."""
    missing = np.flatnonzero(places < 0)
    if len(missing):
        raise DataError(
            f"{key}: {', '.join(source.roots)}: has no key {_key_at(keys, int(missing[0]))!r} ({len(missing)} of "
            f"{len(places)} are missing): give the dataset that was embedded"
        )


def _key_at(keys: Iterable[pa.Array], place: int) -> str:
    for some in keys:
        if place < len(some):
            return some[place].as_py()
        place -= len(some)
    raise IndexError(place)


def _select(core_set: Path, source: Dataset, merged: Mapping[int, int]) -> tuple[Selection, int]:
    """Return the kept images, and the number of images in the core set."""
    table = read_table(core_set, columns=["label", "kept"])
    found = source.find(read_keys(str(core_set)))
    refuse_missing(found, read_keys(str(core_set)), source)
    labels = table["label"].to_numpy()
    own = source.index.label[found].astype(np.int64)
    if merged:
        before = np.array(sorted(merged))
        after = np.array([merged[label] for label in before.tolist()])
        place = np.searchsorted(before, own).clip(max=len(before) - 1)
        own = np.where((before[place] == own) & (after[place] == labels), labels, own)
    other = np.flatnonzero(own != labels)
    if len(other):
        key, here = _key_at(read_keys(str(core_set)), int(other[0])), own[other[0]]
        raise DataError(
            f"prune.data: {', '.join(source.roots)}: label of {key} is {here}, the embeddings say {labels[other[0]]}: "
            "give the datasets as they were embedded, in the same order"
        )
    kept = table["kept"].to_numpy()
    return select(source, found[kept], labels[kept]), len(table)


def _write_shards(root: str, selection: Selection, name: str) -> Dataset:
    """Write shards in one task per source shard that has kept images."""
    source = selection.source
    samples = source.index.select(selection.rows)
    used = np.unique(samples.shard).tolist()
    rows = ShardRows(samples.shard, len(source.shards))
    shared = ray.put((source.shard_paths(), samples, selection.labels))

    def write(numbered: tuple[int, slice | Ints, str]) -> _WrittenShard:
        number, mine, prefix = numbered
        paths, all_samples, labels = ray.get(shared)
        scan = write_selected_shard(root, paths, all_samples.select(mine), labels[mine], number, prefix)
        return _WrittenShard(number=number, scan=scan)

    write_bytes(join(root, UNFINISHED), b"")  # shards without a manifest would be read as a whole dataset
    parts = [(number, rows[shard], source.key_prefixes[shard]) for number, shard in enumerate(used)]
    results = sorted(map_unordered(write, parts, "write shards", rows=len(samples)), key=lambda result: result.number)
    return write_shards_manifest(root, selection, [result.scan for result in results], name=name)
