"""Tasks of cleaning: describe partitions, search pairs, find equal files. Every task writes a file."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.arrays import Ints, group_offsets
from rayface.curate.clean.findings import copies_of
from rayface.curate.clean.pair_search import (
    Apart,
    Pairs,
    PairSearch,
    Tile,
    concatenated,
    leading_axes,
    tiles,
    too_many,
)
from rayface.curate.clean.stacked_rows import StackedRows, stack, write_rows
from rayface.curate.cosines import identity_centers
from rayface.curate.partitions import Partition, Partitions, read_partition
from rayface.curate.work_files import WorkPath, local_paths
from rayface.data.dataset import Dataset
from rayface.data.keys import batches_of
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, ShardRows
from rayface.embedding.embed import find_room
from rayface.embedding.shard_embedder import ShardWork, shard_work
from rayface.ray_tasks import map_unordered, map_unordered_by_actors
from rayface.storage.parquet import num_rows, read_table
from rayface.values import counted

logger = logging.getLogger(__name__)

_GPU_ROWS = 2**30  # bytes of embeddings per tile on a GPU: smaller tiles leave it idle


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """All images by identity, in files; in memory are `cosines` (N,) to the mean of the identity, `bounds`, `names`."""

    paths: tuple[WorkPath, ...]  # key, label, cosine
    centers: StackedRows  # (I, D) float32
    vectors: StackedRows  # (N, D) as embedded; empty if not requested
    cosines: NDArray[np.float64]
    bounds: Ints  # (I + 1,)
    names: Ints  # (I,)

    def table(self, number: int) -> pa.Table:
        """Return key and label of the images of a file."""
        return read_table(self.paths[number].local(), columns=["key", "label"])

    def keys_at(self, rows: Ints) -> pa.Array:
        """Return the keys of rows, (n,) large_string: keys of 42 million images can exceed a string array."""
        paths = local_paths(self.paths)
        ends = np.cumsum([num_rows(path) for path in paths])
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], ends)
        found, first = [pa.array([], pa.large_string())], 0
        for path, last, end in zip(paths, cuts.tolist(), ends.tolist(), strict=True):
            if last > first:
                keys = read_table(path, columns=["key"])["key"].combine_chunks().cast(pa.large_string())
                found.append(keys.take(pa.array(rows[order[first:last]] - (end - len(keys)))))
            first = last
        places = np.empty(len(rows), np.int64)
        places[order] = np.arange(len(rows))
        return pa.concat_arrays(found).take(pa.array(places))


def describe(partitions: Partitions, folder: WorkPath, *, vectors: bool = False) -> ImageFiles:
    """Write centers of all identities, and key, label and cosine of all images; with `vectors` also embeddings."""

    def work(numbered: tuple[int, Partition]) -> None:
        number, partition = numbered
        path = folder / f"faces-{number:06d}.parquet"
        if not path.exists():
            rows, offsets = read_partition(partition)
            centers, cosines = identity_centers(rows.embeddings, offsets)
            write_rows(folder / f"centers-{number:06d}.npy", centers)
            if vectors:
                write_rows(folder / f"vectors-{number:06d}.npy", rows.embeddings)
            _write(path, pa.table({"key": rows.keys, "label": rows.labels, "cosine": cosines}))

    parts = list(enumerate(partitions.partitions))
    for _ in map_unordered(work, parts, "average identities", rows=partitions.num_rows):
        pass
    numbers = range(len(parts))
    paths = tuple(folder / f"faces-{number:06d}.parquet" for number in numbers)
    tables = [read_table(path, columns=["label", "cosine"]) for path in local_paths(paths)]
    labels = np.concatenate([table["label"].to_numpy() for table in tables])
    bounds = group_offsets(labels)
    return ImageFiles(
        paths=paths,
        centers=stack([folder / f"centers-{number:06d}.npy" for number in numbers]),
        vectors=stack([folder / f"vectors-{number:06d}.npy" for number in numbers] if vectors else []),
        cosines=np.concatenate([table["cosine"].to_numpy() for table in tables]),
        bounds=bounds,
        names=labels[bounds[:-1]],
    )


def _write(path: WorkPath, table: pa.Table) -> None:
    with path.writing() as stream:
        pq.write_table(table, stream)


@dataclass(frozen=True, kw_only=True)
class SearchBounds:
    """Limits of a search.

    Attributes:
        limit: maximum total number of pairs.
        block_bytes: approximate size of the embeddings in a task.
        device: "auto", "cpu" or "cuda".
    """

    limit: int
    block_bytes: int
    device: str


@dataclass(frozen=True, kw_only=True)
class TileSearch:
    """Search a tile, write its pairs to a file and return their number."""

    name: str
    left: StackedRows
    right: StackedRows | None
    threshold: float
    limit: int
    axes: NDArray[np.float32] | None
    device: str
    folder: WorkPath  # with bounds.npy and known.npy of `Apart`, where only some pairs count

    def path(self, tile: Tile) -> WorkPath:
        return self.folder / f"{'-'.join(map(str, tile))}.parquet"

    def __call__(self, tile: Tile) -> int:
        path = self.path(tile)
        if not path.exists():
            apart = None
            if (self.folder / "bounds.npy").exists():
                paths = local_paths([self.folder / "bounds.npy", self.folder / "known.npy"])
                apart = Apart(*(np.load(path, mmap_mode="r") for path in paths))
            search = PairSearch(
                self.name,
                self.left,
                self.right,
                self.threshold,
                limit=self.limit,
                apart=apart,
                axes=self.axes,
                device=self.device,
            )
            _write(path, pa.table(dict(zip(("left", "right", "cosine"), search(tile), strict=True))))
        return num_rows(path.local())


def search(
    name: str,
    left: StackedRows,
    right: StackedRows | None,
    threshold: float,
    folder: WorkPath,
    bounds: SearchBounds,
    apart: tuple[Ints, Ints] | None = None,
) -> Pairs:
    """Return all pairs of rows with a cosine above the threshold, searched on the cluster's GPUs, else its CPUs.

    Args:
        right: None: left rows with each other.
        apart: bounds and known pairs, see `Apart`.

    Raises:
        DataError: more pairs than the limit.
    """
    folder = folder / name
    for part, values in zip(("bounds", "known"), apart or (), strict=False):
        write_rows(folder / f"{part}.npy", values)
    gpu, actors, cpus = find_room(bounds.device)
    tile_search = TileSearch(
        name=name,
        left=left,
        right=right,
        threshold=threshold,
        limit=bounds.limit,
        axes=leading_axes(left, right, threshold),
        device="cuda" if gpu else "cpu",
        folder=folder,
    )
    block = max(bounds.block_bytes, _GPU_ROWS) if gpu else bounds.block_bytes
    work = tiles(len(left), None if right is None else len(right), left.size, block)
    if gpu:
        actors = min(actors, len(work))
        results = map_unordered_by_actors(
            TileSearch, vars(tile_search), work, f"search {name}", actors=actors, num_cpus=cpus, num_gpus=1
        )
    else:
        results = map_unordered(tile_search, work, f"search {name}")
    total = 0
    for count in results:
        total += count
        if total > bounds.limit:
            raise too_many(name, threshold, bounds.limit)
    tables = map(read_table, local_paths([tile_search.path(tile) for tile in work]))
    return concatenated((own["left"].to_numpy(), own["right"].to_numpy(), own["cosine"].to_numpy()) for own in tables)


def copies(dataset: Dataset, images: ImageFiles, folder: WorkPath) -> Pairs:
    """Return readable images whose files equal another's, each with the one to keep."""
    digests = _digests(dataset, folder / "digests")
    tables = map(images.table, range(len(images.paths)))
    places = dataset.find(keys for table in tables for keys in batches_of(table["key"]))
    own = np.where(places >= 0, digests[places], 0)
    if unread := int(np.count_nonzero(own == 0)):
        logger.warning("clean.bytes: %s of prune.data cannot be read: not compared", counted(unread, "image"))
    known, counts = np.unique(own[own > 0], return_counts=True)
    rows = np.flatnonzero(np.isin(own, known[counts > 1]))
    left, right, cosines = copies_of(own[rows], images.cosines[rows])
    return rows[left], rows[right], cosines


def _digests(dataset: Dataset, folder: WorkPath) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each sample's image, (n,), in the order of the index; 0 if it cannot be read."""

    def digest(shard: ShardWork) -> int:
        path = folder / f"{shard.number:06d}.npy"
        if not path.exists():
            found = np.zeros(len(shard.samples), np.uint64)
            for start in range(0, len(found), 512):
                samples = read_samples([shard.path], shard.samples.select(slice(start, start + 512)))
                for row, sample in enumerate(samples, start):
                    if not isinstance(sample, Fault):
                        found[row] = int.from_bytes(hashlib.blake2b(sample.jpeg, digest_size=8).digest(), "little")
            write_rows(path, found)
        return shard.number

    digests = np.zeros(len(dataset.index), np.uint64)
    places = ShardRows(dataset.index.shard, len(dataset.shards))
    work = list(shard_work(dataset, range(len(dataset.shards))))
    for number in map_unordered(digest, work, "hash images", rows=len(digests)):
        digests[places[number]] = np.load((folder / f"{number:06d}.npy").local())
    return digests
