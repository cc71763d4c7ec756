"""Cut the final order of all images into shards, by the records of the units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.data.conversion.listing import Listed
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.work_folder import WorkFolder, note_of, read_table
from rayface.data.writer import ARCHIVE_END
from rayface.storage import DataError

BLOCK_BYTES = 512 << 20  # of a shard, sorted in memory at once


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The images of every shard, as ranges of bytes of every piece.

    Attributes:
        pieces: paths.
        edges: (pieces, blocks + 1) int64, bytes of each piece before each block.
        shards: (S + 1,) int64, first block of each shard.
        counts: (S,) int64, images of each shard.
        new_labels: (L,) int32, final label of each listed one, -1 if its images are left out.
        readable: (L,) int64, readable images of each listed label.
        digest: sum of the key digests of all images, modulo 2^64.
    """

    pieces: tuple[str, ...]
    edges: NDArray[np.int64]
    shards: NDArray[np.int64]
    counts: NDArray[np.int64]
    new_labels: NDArray[np.int32]
    readable: NDArray[np.int64]
    digest: int

    def __len__(self) -> int:
        return len(self.counts)

    def blocks(self, shard: int) -> Iterator[list[tuple[str, int, int]]]:
        """Yield (path, first byte, number of bytes) of the records of each block of a shard."""
        for block in range(self.shards[shard], self.shards[shard + 1]):
            first, last = self.edges[:, block], self.edges[:, block + 1]
            yield [(self.pieces[n], int(first[n]), int(last[n] - first[n])) for n in np.flatnonzero(last > first)]


def plan_shards(
    listed: Listed, work: WorkFolder, settings: ConvertSettings, *, block_bytes: int = BLOCK_BYTES
) -> ShardPlan:
    """Cut the final order into shards of at most `settings.shard_size` bytes.

    Memory: about 40 bytes an image, 8 for each piece and block.

    Raises:
        DataError: no image remains.
    """
    units = range(len(listed.units))
    counts = np.zeros(listed.num_labels, np.int64)
    for number in units:
        counts += np.bincount(_record(work, number)["label"].to_numpy(), minlength=len(counts))
    kept = counts >= settings.min_images
    if not kept.any():
        raise DataError(
            f"convert.min_images: {settings.min_images}: no identity has so many readable images: "
            f"the largest has {counts.max()}"
        )
    new_labels = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    place, size, digest = _kept_places(work, units, kept, int(counts[kept].sum()))
    edges, shards, starts = _cuts(place, size, settings.shard_size, block_bytes)
    return ShardPlan(
        pieces=tuple(work.piece(unit, number) for unit in units for number in range(len(_lengths(work, unit)))),
        edges=_edges(work, units, starts),
        shards=shards,
        counts=np.diff(edges[shards]),
        new_labels=new_labels,
        readable=counts,
        digest=digest,
    )


def _record(work: WorkFolder, unit: int) -> pa.Table:
    return read_table(work.spilled(unit)).combine_chunks()


def _lengths(work: WorkFolder, unit: int) -> list[int]:
    """Return the number of records of each piece of a unit."""
    return note_of(read_table(work.spilled(unit)))["pieces"]


def _kept_places(
    work: WorkFolder, units: Sequence[int], kept: NDArray[np.bool_], num_images: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], int]:
    """Return place and size of all images that are kept, and the sum of their key digests."""
    place, size = np.empty(num_images, np.uint64), np.empty(num_images, np.uint32)
    done = digest = 0
    for number in units:
        record = _record(work, number)
        mine = kept[record["label"].to_numpy()]
        rows = slice(done, done + int(np.count_nonzero(mine)))
        place[rows] = record["place"].to_numpy()[mine]
        size[rows] = record["sample_bytes"].to_numpy()[mine]
        digest += int(record["key_digest"].to_numpy()[mine].sum())
        done = rows.stop
    return place, size, digest % 2**64


def _cuts(
    place: NDArray[np.uint64], size: NDArray[np.uint32], shard_size: int, block_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Return the first image of each block and the end, the first block of each shard and the end, and the first place
    of each block but the first."""
    order = np.argsort(place)
    ends = np.cumsum(size[order], dtype=np.int64)
    edges, shards, at = [0], [0], 0
    while at < len(ends):
        before = ends[at - 1] if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, before + shard_size - ARCHIVE_END, "right")))
        while at < stop:
            before = ends[at - 1] if at else 0
            at = min(stop, max(at + 1, int(np.searchsorted(ends, before + block_bytes, "right"))))
            edges.append(at)
        shards.append(len(edges) - 1)
    return np.array(edges), np.array(shards), place[order[edges[1:-1]]]


def _edges(work: WorkFolder, units: Sequence[int], starts: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for each piece the bytes before the first place of each block."""
    rows = []
    for unit in units:
        record, first = _record(work, unit), 0
        places, num_bytes = record["place"].to_numpy(), record["record_bytes"].to_numpy()
        for length in _lengths(work, unit):
            piece = slice(first, first + length)
            ends = np.r_[0, np.cumsum(num_bytes[piece])]
            rows.append(np.r_[0, ends[np.searchsorted(places[piece], starts)], ends[-1]])
            first += length
    return np.stack(rows)
