"""Embeddings grouped into pieces of whole identities, of about a block each, in bounded memory.

Rows that arrive by identity are only cut between identities. Others are shuffled through files: each task sorts a block
of rows by label, a piece is a range of labels, and whoever reads a piece takes its rows from every sorted run. Unlike
Ray Data's hash shuffle (repartition by key), which holds the set in the object store, this keeps nothing but a block in
memory, cuts only between identities whatever their sizes, and goes on with the runs that are there after a crash.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rayface.curate.embeddings import EmbeddingFile, Embeddings, Rows, read_labels, read_rows
from rayface.curate.identities import Ints, group_offsets
from rayface.curate.parts import Progress, each_part
from rayface.data.storage import DataError, atomic_stream

_MOST_MET = 1000
_FEW_LABELS = 1_000_000  # are added up at a time, or as many as are known
_NO_ROWS = np.empty(0, np.uint64), np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Whole identities: row ranges of files, (path, start, stop) each."""

    ranges: tuple[tuple[str, int, int], ...]
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """All faces in pieces; `labels` (I,) int64, rising, and `sizes` (I,) of the identities."""

    pieces: tuple[Piece, ...]
    labels: Ints
    sizes: Ints

    @property
    def num_rows(self) -> int:
        return int(self.sizes.sum())


def read_piece(piece: Piece) -> tuple[Rows, Ints]:
    """Read a piece: rows by label, then by key, and offsets (I + 1,).

    Raises:
        DataError: a bad embedding; one line.
    """
    parts = [read_rows(*each) for each in piece.ranges]
    labels = np.concatenate([part.labels for part in parts])
    keys = pa.concat_arrays([part.keys for part in parts])
    order = pc.sort_indices(pa.table({"label": labels, "key": keys}), [("label", "ascending"), ("key", "ascending")])
    places = order.to_numpy()
    embeddings = np.empty((len(labels), parts[0].embeddings.shape[1]), parts[0].embeddings.dtype)
    row_of = np.argsort(places)
    while parts:  # each is let go once it is copied
        part = parts.pop()
        first = len(row_of) - len(part.labels)
        embeddings[row_of[first:]] = part.embeddings
        row_of = row_of[:first]
    rows = Rows(keys.take(order), labels[places], embeddings)
    return rows, group_offsets(rows.labels)


def group(source: Embeddings, folder: Path, block_bytes: int, progress: Progress) -> Pieces:
    """Count the identities and cut the faces into pieces.

    Args:
        folder: for sorted runs, where the rows do not arrive by identity: a copy of the embeddings.
        block_bytes: of embeddings in a piece, about; an identity is never cut.

    Memory: a block for each task; on the driver 8 bytes for each face and about 100 for each identity.

    Raises:
        DataError: a bad row, or a key that occurs twice; one line.
    """
    counts = _count(source, progress)
    labels, sizes = counts.labels, counts.sizes
    block = max(1, block_bytes // (source.size * np.dtype(source.dtype).itemsize))
    if counts.runs is not None:
        pieces = list(_cut_by_identity(source.files, counts.runs, block))
    else:
        pieces = _shuffle(source, folder, labels, sizes, block, progress)
    return Pieces(pieces=tuple(pieces), labels=labels, sizes=sizes)


@dataclass(kw_only=True)
class _Counts:
    labels: Ints
    sizes: Ints
    runs: list[tuple[Ints, Ints]] | None  # of each file, where rows arrive by identity: labels and lengths


def _count(source: Embeddings, progress: Progress) -> _Counts:
    """Read keys and labels of all files once."""
    files = source.files

    def count(numbered: tuple[int, EmbeddingFile]) -> dict[str, Any]:
        part, file = numbered
        blocks = [(_hashes(keys), some) for keys, some in read_labels(file)]
        hashes, labels = (np.concatenate(side) for side in zip(*blocks, strict=True)) if blocks else _NO_ROWS
        run_labels, lengths = _runs(labels)
        known, sizes = np.unique(labels, return_counts=True)
        whole = len(known) == len(run_labels)
        runs = (run_labels, lengths) if whole else None
        return {"part": part, "labels": known, "sizes": sizes, "runs": runs, "hashes": hashes}

    runs: list[Any] = [None] * len(files)
    hashes, done = np.empty(source.num_rows, np.uint64), 0
    counts: list[tuple[Ints, Ints]] = []
    for result in each_part(count, list(enumerate(files)), progress):
        runs[result["part"]] = result["runs"]
        hashes[done : done + len(result["hashes"])] = result["hashes"]
        done += len(result["hashes"])
        counts.append((result["labels"], result["sizes"]))
        if sum(len(labels) for labels, _ in counts[1:]) > len(counts[0][0]) + _FEW_LABELS:
            counts = [_summed(counts)]
    labels, sizes = _summed(counts)
    _refuse_duplicates(files, hashes)
    return _Counts(labels=labels, sizes=sizes, runs=runs if _arrive_whole(runs, len(labels)) else None)


def _runs(labels: Ints) -> tuple[Ints, Ints]:
    """Label and length of each stretch of equal labels."""
    if not len(labels):
        return labels, labels
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    return labels[starts], np.diff(np.r_[starts, len(labels)])


def _arrive_whole(runs: Sequence[tuple[Ints, Ints] | None], num_identities: int) -> bool:
    """Whether every identity is one stretch of rows, at most cut by the end of a file."""
    stretches, last = 0, None
    for run in runs:
        if run is None:
            return False
        labels = run[0]
        if len(labels):
            stretches += len(labels) - (labels[0] == last)
            last = labels[-1]
    return stretches == num_identities


def _summed(counts: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    """Labels, rising, and how many faces each has in all."""
    labels, sizes = (np.concatenate(side) for side in zip(*counts, strict=True))
    labels, place = np.unique(labels, return_inverse=True)
    return labels, np.bincount(place, sizes, minlength=len(labels)).astype(np.int64)


def _hashes(keys: pa.Array) -> NDArray[np.uint64]:
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys.to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint64)


def _refuse_duplicates(files: Sequence[EmbeddingFile], hashes: NDArray[np.uint64]) -> None:
    """Only keys whose 64-bit hashes meet are compared; `hashes` are sorted in place."""
    hashes.sort()
    met = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])[:_MOST_MET]  # by chance hardly ever one
    if not len(met):
        return
    seen: Counter[str] = Counter()
    for keys, _ in itertools.chain.from_iterable(map(read_labels, files)):
        seen.update(keys.filter(pa.array(np.isin(_hashes(keys), met))).to_pylist())
    key, times = max(seen.items(), key=lambda item: item[1])
    if times > 1:
        raise DataError(f"embeddings: key: {key!r}: occurs {times} times: keys must be unique, remove the copies")


def _cut_by_identity(files: Sequence[EmbeddingFile], runs: list[tuple[Ints, Ints]], block: int) -> Iterator[Piece]:
    """Cut the stretches of all files, in their order, into pieces of at least a block of rows."""
    ranges: list[tuple[str, int, int]] = []
    held, last = 0, None
    for file, (labels, lengths) in zip(files, runs, strict=True):
        start = stop = 0
        for label, length in zip(labels.tolist(), lengths.tolist(), strict=True):
            if held + stop - start >= block and label != last:
                ranges += [(file.path, start, stop)] if stop > start else []
                yield Piece(ranges=tuple(ranges), num_rows=held + stop - start)
                ranges, held, start = [], 0, stop
            stop, last = stop + length, label
        ranges += [(file.path, start, stop)] if stop > start else []
        held += stop - start
    if held:
        yield Piece(ranges=tuple(ranges), num_rows=held)


def _shuffle(
    source: Embeddings, folder: Path, labels: Ints, sizes: Ints, block: int, progress: Progress
) -> list[Piece]:
    """Sort blocks of rows by label into files of their own; a piece is a range of labels in all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [
        (file.path, start, min(start + block, file.num_rows))
        for file in source.files
        for start in range(0, file.num_rows, block)
    ]
    # A piece ends with the identity that fills its block.
    ends = np.cumsum(sizes)
    number = (ends - sizes) // block
    firsts = labels[np.flatnonzero(np.r_[True, number[1:] != number[:-1]])]

    def sort(numbered: tuple[int, tuple[str, int, int]]) -> dict[str, Any]:
        part, block = numbered
        path = folder / f"run-{part:06d}.arrow"
        if not path.exists():
            _write_sorted(str(path), read_rows(*block))
        with pa.memory_map(str(path)) as file:
            found = pa.ipc.open_file(file).get_batch(0)["label"].to_numpy()
            return {"part": part, "bounds": np.r_[np.searchsorted(found, firsts), len(found)]}

    bounds: list[Any] = [None] * len(blocks)
    for result in each_part(sort, list(enumerate(blocks)), progress):
        bounds[result["part"]] = result["bounds"].tolist()
    pieces, paths = [], [str(folder / f"run-{run:06d}.arrow") for run in range(len(blocks))]
    for k in range(len(firsts)):
        spans = [(path, b[k], b[k + 1]) for path, b in zip(paths, bounds, strict=True)]
        ranges = tuple(span for span in spans if span[1] < span[2])
        pieces.append(Piece(ranges=ranges, num_rows=sum(stop - start for _, start, stop in ranges)))
    return pieces


def _write_sorted(path: str, rows: Rows) -> None:
    """As an uncompressed Arrow file, of which a reader maps the range that it wants."""
    order = np.argsort(rows.labels, kind="stable")
    values = pa.array(rows.embeddings[order].ravel())
    lists = pa.FixedSizeListArray.from_arrays(values, rows.embeddings.shape[1])
    columns = {"key": rows.keys.take(pa.array(order)), "label": rows.labels[order], "embedding": lists}
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with atomic_stream(path) as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
