"""A dataset of the faces that a core set keeps: an index of the source's shards, or shards of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from rayface.curate.embeddings import Embeddings, read_labels
from rayface.curate.parts import Progress, each_part
from rayface.data.samples import ShardRows
from rayface.data.selection import (
    Selection,
    select,
    write_selected_shard,
    write_selection,
    write_shards_manifest,
)
from rayface.data.shards import DataError, Dataset


def write_pruned(
    root: Path,
    source: Dataset,
    core_set: Path,
    *,
    merged: Mapping[int, int],
    write_shards: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Write the kept faces as a dataset into `root`.

    Args:
        merged: labels of identities that the core set gives another label.

    Memory, on the driver: the keys of both sides.

    Returns:
        images, classes, shards, and not_embedded: images of the source that the core set does not know.

    Raises:
        DataError: a key that is not in the source, or has another label there.
    """
    selection, known = _select(core_set, source, merged)
    name = root.name
    if write_shards:
        dataset = _write_shards(root, selection, name, progress)
    else:
        dataset = write_selection(str(root), selection, name=name)
    return {
        "images": dataset.num_images,
        "classes": dataset.num_classes,
        "shards": len(dataset.shards),
        "not_embedded": source.num_images - known,
    }


def check_data(embeddings: Embeddings, source: Dataset) -> None:
    """Raise DataError, before hours of work, where the first embedded faces are not in the source."""
    file = next(file for file in embeddings.files if file.num_rows)
    _places(next(read_labels(file))[0], source)


def _places(keys: pa.Array | pa.ChunkedArray, source: Dataset) -> NDArray[np.int64]:
    """Where the keys are in the source's index."""
    places = pc.index_in(keys, value_set=source.key_column().combine_chunks())
    if places.null_count:
        lost = keys.filter(pc.is_null(places))[0].as_py()
        raise DataError(
            f"--data: {', '.join(source.roots)}: has no key {lost!r} ({places.null_count} of {len(keys)} are "
            "missing): give the dataset that was embedded"
        )
    return places.to_numpy().astype(np.int64)


def _select(core_set: Path, source: Dataset, merged: Mapping[int, int]) -> tuple[Selection, int]:
    """The kept faces, and how many faces the core set knows."""
    table = pq.read_table(core_set, columns=["key", "label", "kept"])
    found = _places(table["key"], source)
    labels = table["label"].to_numpy()
    own = source.index.label[found].astype(np.int64)
    if merged:
        before = np.array(sorted(merged))
        after = np.array([merged[label] for label in before.tolist()])
        place = np.searchsorted(before, own).clip(max=len(before) - 1)
        own = np.where((before[place] == own) & (after[place] == labels), labels, own)
    other = np.flatnonzero(own != labels)
    if len(other):
        key, here = table["key"][int(other[0])].as_py(), own[other[0]]
        raise DataError(
            f"--data: {', '.join(source.roots)}: label of {key} is {here}, the embeddings say {labels[other[0]]}: give "
            "the datasets as they were embedded, in the same order"
        )
    kept = table["kept"].to_numpy()
    return select(source, found[kept], labels[kept]), len(table)


def _write_shards(root: Path, selection: Selection, name: str, progress: Progress) -> Dataset:
    """One task for each of the source's shards that has kept samples."""
    source = selection.source
    samples = source.index.select(selection.rows)
    used = np.unique(samples.shard).tolist()
    rows = ShardRows(samples.shard, len(source.shards))
    shared = ray.put((source.shard_paths(), samples, selection.labels))

    def write(numbered: tuple[int, slice | NDArray[np.int64]]) -> dict[str, Any]:
        number, mine = numbered
        paths, all_samples, labels = ray.get(shared)
        scan = write_selected_shard(str(root), paths, all_samples.select(mine), labels[mine], number)
        return {"number": number, "scan": scan}

    parts = [(number, rows[shard]) for number, shard in enumerate(used)]
    results = sorted(each_part(write, parts, progress), key=lambda result: result["number"])
    return write_shards_manifest(str(root), selection, [result["scan"] for result in results], name=name)
