"""Group embeddings into partitions of whole identities, of about one block each, in bounded memory.

Files that are sorted by identity are cut between identities. Others are shuffled through files: each task sorts a block
of rows by label, a partition is a range of labels, and a reader takes its rows from every sorted run. Ray Data's hash
shuffle (repartition by key) holds the dataset in the object store; this keeps one block in memory, never cuts an
identity, and resumes with the existing runs after a crash.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayface.arrays import Ints, group_offsets
from rayface.curate.sorted_runs import Range, SortedRuns, read_run, sort_rows, write_run
from rayface.curate.work_files import WorkPath, local_paths
from rayface.embedding.embeddings import Embeddings
from rayface.embedding.rows import EmbeddingFile, Rows, read_labels, read_rows
from rayface.ray_tasks import map_unordered
from rayface.storage import DataError

_MOST_MET = 1000
_FEW_LABELS = 1_000_000  # counts are merged when this many new ones have arrived
_NO_ROWS = np.empty(0, np.uint64), np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Whole identities: ranges of rows, or in every sorted run the rows with labels from `first` to `last`.

    Each reader finds its rows in a run itself: for 5,000 runs and 5,000 partitions, the driver would otherwise hold and
    send 27 million ranges.
    """

    num_rows: int
    ranges: tuple[Range, ...] = ()
    runs: SortedRuns | None = None
    first: int = 0
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class Partitions:
    """All images in partitions; `labels` (I,) int64, rising, and `sizes` (I,) of the identities."""

    partitions: tuple[Partition, ...]
    labels: Ints
    sizes: Ints

    @property
    def num_rows(self) -> int:
        return int(self.sizes.sum())


def read_partition(partition: Partition) -> tuple[Rows, Ints]:
    """Read a partition: rows by label, then by key, and offsets (I + 1,).

    Raises:
        DataError: a bad embedding; one line.
    """
    if partition.runs is None:
        parts = [read_rows(*each) for each in partition.ranges]
    else:
        paths = local_paths([partition.runs.path(number) for number in range(partition.runs.count)])
        runs = [read_run(path, partition.first, partition.last) for path in paths]
        parts = [run for run in runs if len(run.labels)]
    rows = sort_rows(parts)
    return rows, group_offsets(rows.labels)


def partition_by_identity(source: Embeddings, folder: WorkPath, block_bytes: int) -> Partitions:
    """Count the identities and cut the images into partitions.

    Args:
        folder: for sorted runs, a copy of the embeddings, unless the rows are by identity.
        block_bytes: approximate size of a partition's embeddings; an identity is never cut.

    Memory: a few blocks per task; on the driver 8 bytes per image and about 100 per identity and per partition. The
    size of a partition's description does not grow with the number of files, unless rows are sorted by identity.

    Raises:
        DataError: a bad row, or a key that occurs twice; one line.
    """
    block = max(1, block_bytes // (source.size * np.dtype(source.dtype).itemsize))
    counts = _count(source, block)
    labels, sizes = counts.labels, counts.sizes
    if counts.stretches is not None:
        partitions = list(_cut_by_identity(source.files, counts.stretches, block))
    else:
        partitions = _shuffle(source, folder, labels, sizes, block)
    return Partitions(partitions=tuple(partitions), labels=labels, sizes=sizes)


def row_blocks(source: Embeddings, most: int) -> list[list[Range]]:
    """Cut the rows of all files, in order, into blocks of up to `most` rows."""
    return [
        [(file.path, start, min(start + most, file.num_rows)) for file in some]
        for some in _together([file for file in source.files if file.num_rows], most)
        for start in range(0, max(file.num_rows for file in some), most)  # of several files, all are in one block
    ]


def _together(files: Sequence[EmbeddingFile], most: int) -> list[list[EmbeddingFile]]:
    """Group adjacent files with up to `most` rows in total; a larger file is alone."""
    found: list[list[EmbeddingFile]] = []
    rows = most
    for file in files:
        if rows + file.num_rows > most:
            found.append([])
            rows = 0
        found[-1].append(file)
        rows += file.num_rows
    return found


Stretches = tuple[Ints, Ints]
"""Label and length of each stretch of equal labels in a file."""


@dataclass(frozen=True, kw_only=True)
class _FileCounts:
    """Counts of the files of a part; `stretches` per file, None if an identity has several of them."""

    part: int
    labels: Ints
    sizes: Ints
    stretches: list[Stretches] | None
    hashes: NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """Counts of all files; `stretches` per file, None unless every identity's rows are adjacent."""

    labels: Ints
    sizes: Ints
    stretches: list[Stretches] | None


def _count(source: Embeddings, block: int) -> _Counts:
    """Read keys and labels of all files once."""
    files = source.files

    def count(numbered: tuple[int, list[EmbeddingFile]]) -> _FileCounts:
        part, some = numbered
        blocks = [[(key_hashes(keys), labels) for keys, labels in read_labels(file)] or [_NO_ROWS] for file in some]
        labels = [np.concatenate([own for _, own in each]) for each in blocks]
        known, sizes = np.unique(np.concatenate(labels), return_counts=True)
        stretches = [_stretches(each) for each in labels]
        return _FileCounts(
            part=part,
            labels=known,
            sizes=sizes,
            stretches=stretches if _is_by_identity(stretches, len(known)) else None,
            hashes=np.concatenate([own for each in blocks for own, _ in each]),
        )

    parts = list(enumerate(_together(files, block)))
    stretches: dict[int, list[Stretches]] | None = {}
    hashes, done = np.empty(source.num_rows, np.uint64), 0
    counts: list[tuple[Ints, Ints]] = []
    for result in map_unordered(count, parts, "read keys and labels", rows=source.num_rows):
        if stretches is None or result.stretches is None:
            stretches = None
        else:
            stretches[result.part] = result.stretches
        hashes[done : done + len(result.hashes)] = result.hashes
        done += len(result.hashes)
        counts.append((result.labels, result.sizes))
        if sum(len(labels) for labels, _ in counts[1:]) > len(counts[0][0]) + _FEW_LABELS:
            counts = [_summed(counts)]
    labels, sizes = _summed(counts)
    refuse_duplicates(files, hashes)
    if stretches is not None:
        in_order = [each for part in range(len(parts)) for each in stretches[part]]
        if _is_by_identity(in_order, len(labels)):
            return _Counts(labels=labels, sizes=sizes, stretches=in_order)
    return _Counts(labels=labels, sizes=sizes, stretches=None)


def _stretches(labels: Ints) -> Stretches:
    if not len(labels):
        return labels, labels
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    return labels[starts], np.diff(np.r_[starts, len(labels)])


def _is_by_identity(stretches: Sequence[Stretches], num_identities: int) -> bool:
    """Return whether every identity is one stretch of rows, except where a file ends."""
    count, last = 0, None
    for labels, _ in stretches:
        if len(labels):
            count += len(labels) - (labels[0] == last)
            last = labels[-1]
    return bool(count == num_identities)


def _summed(counts: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Return the labels, rising, and the number of images of each."""
    labels, sizes = (np.concatenate(side) for side in zip(*counts, strict=True))
    labels, place = np.unique(labels, return_inverse=True)
    return labels, np.bincount(place, sizes, minlength=len(labels)).astype(np.int64)


def key_hashes(keys: pa.Array) -> NDArray[np.uint64]:
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys.to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint64)


def refuse_duplicates(files: Sequence[EmbeddingFile], hashes: NDArray[np.uint64]) -> None:
    """Raise DataError for duplicate keys; only keys with equal 64-bit hashes are compared. Sorts `hashes` in place."""
    hashes.sort()
    met = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_MOST_MET]  # 64-bit hash collisions are rare
    if not len(met):
        return
    seen: Counter[str] = Counter()
    for keys, _ in itertools.chain.from_iterable(map(read_labels, files)):
        seen.update(keys.filter(pa.array(np.isin(key_hashes(keys), met))).to_pylist())
    key, times = max(seen.items(), key=lambda item: item[1])
    if times > 1:
        raise DataError(f"embeddings: key: {key!r}: occurs {times} times: keys must be unique, remove the copies")


def _cut_by_identity(files: Sequence[EmbeddingFile], stretches: list[Stretches], block: int) -> Iterator[Partition]:
    """Cut the stretches of all files, in order, into partitions of at least a block of rows."""
    ranges: list[tuple[str, int, int]] = []
    held, last = 0, None
    for file, (labels, lengths) in zip(files, stretches, strict=True):
        start = stop = 0
        for label, length in zip(labels.tolist(), lengths.tolist(), strict=True):
            if held + stop - start >= block and label != last:
                ranges += [(file.path, start, stop)] if stop > start else []
                yield Partition(ranges=tuple(ranges), num_rows=held + stop - start)
                ranges, held, start = [], 0, stop
            stop, last = stop + length, label
        ranges += [(file.path, start, stop)] if stop > start else []
        held += stop - start
    if held:
        yield Partition(ranges=tuple(ranges), num_rows=held)


def _shuffle(source: Embeddings, folder: WorkPath, labels: Ints, sizes: Ints, block: int) -> list[Partition]:
    """Sort blocks of rows by label into files of their own; a partition is a range of labels in all of them."""
    blocks = row_blocks(source, block)
    runs = SortedRuns(folder=folder, count=len(blocks))

    def sort(numbered: tuple[int, list[Range]]) -> None:
        part, ranges = numbered
        if not runs.path(part).exists():
            write_run(runs.path(part), sort_rows([read_rows(*each) for each in ranges]))

    for _ in map_unordered(sort, list(enumerate(blocks)), "sort by identity", rows=source.num_rows):
        pass
    # A partition ends with the identity that fills its block.
    ends = np.cumsum(sizes)
    number = (ends - sizes) // block
    starts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
    counts = np.add.reduceat(sizes, starts)
    bounds = zip(
        labels[starts].tolist(), labels[np.r_[starts[1:], len(labels)] - 1].tolist(), counts.tolist(), strict=True
    )
    return [Partition(runs=runs, first=first, last=last, num_rows=rows) for first, last, rows in bounds]
