"""Clean embedded faces before they are pruned: `clean` on a file of all of them, and embeddings of those that stay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.curate.choose import SCHEMA
from rayface.curate.clean import CleanOptions, CleanReport, clean
from rayface.curate.embed import ShardWork, shard_work
from rayface.curate.embeddings import Dtype, Embeddings, Rows, open_embeddings, read_rows, write_part
from rayface.curate.identities import Ints
from rayface.curate.parts import Progress, each_part
from rayface.curate.pieces import Pieces, read_piece
from rayface.data.keys import batches_of
from rayface.data.samples import ShardRows
from rayface.data.shards import Dataset, Fault, read_samples
from rayface.data.storage import atomic_stream, write_bytes

_ROWS = 65_536
_DONE = "done.json"  # written last
_SORTED, _STAYS, _FACES = "faces.npy", "stays.parquet", "faces.parquet"
_TABLES = ("outliers", "duplicates", "conflicts", "bytes", "test")


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What `clean` found, the embeddings that stay, the others as rows of a core set, and labels that were merged.

    `faces` is a parquet file with the key and the label of all faces, before any were merged.
    """

    report: CleanReport
    faces: Path
    stays: Embeddings
    dropped: pa.Table
    merged: dict[int, int]


def clean_faces(
    pieces: Pieces,
    source: Embeddings,
    folder: Path,
    options: CleanOptions,
    *,
    exclude: Embeddings | None,
    dataset: Dataset | None,
    progress: Progress,
) -> Cleaned:
    """Clean all faces, in this process; what was found is kept in files and, once complete, never looked for again.

    Approximate search need not find the same on another machine, and what follows builds on it.

    Args:
        folder: for what was found, and two copies of the embeddings, one sorted by identity, one of those that stay.
        exclude: of a test set whose identities are to be looked for.
        dataset: where given, samples of the same bytes are looked for.

    Memory: as of `clean`; the keys of all faces, and those of `exclude` whole.
    """
    if not (folder / _DONE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        _clean(pieces, source, folder, options, exclude, dataset, progress)
        write_bytes(str(folder / _DONE), b"{}\n")
    (folder / _SORTED).unlink(missing_ok=True)
    return _cleaned(folder)


def _clean(
    pieces: Pieces,
    source: Embeddings,
    folder: Path,
    options: CleanOptions,
    exclude: Embeddings | None,
    dataset: Dataset | None,
    progress: Progress,
) -> None:
    keys, labels, embeddings = _in_one_file(pieces, source, folder / _SORTED)
    test = None if exclude is None else _whole(exclude)
    report = clean(
        embeddings,
        labels,
        keys,
        options,
        test_embeddings=None if test is None else test.embeddings,
        test_labels=None if test is None else test.labels,
        digests=None if dataset is None else _digests(dataset, keys, progress),
    )
    stays = np.flatnonzero(report.reason.is_null())
    if len(stays) == 0:
        raise ValueError("--drop: drops every face: raise or lower the cosines")
    dtype: Dtype = "fp16" if embeddings.dtype == np.float16 else "fp32"

    def batches() -> Iterator[tuple[list[str], Ints, Any]]:
        for rows in (stays[k : k + _ROWS] for k in range(0, len(stays), _ROWS)):
            yield keys.take(pa.array(rows)).to_pylist(), report.labels[rows], embeddings[rows]

    write_part(str(folder / _STAYS), batches(), size=source.size, dtype=dtype, note={})
    write_findings(report, folder)
    faces = {"key": keys, "label": labels, "reason": report.reason, "merged": report.labels}
    _write_table(folder / _FACES, pa.table(faces))


def _cleaned(folder: Path) -> Cleaned:
    """Read what _clean wrote."""
    faces = pq.read_table(folder / _FACES).combine_chunks()
    keys, reason = (faces[name].chunk(0) for name in ("key", "reason"))
    labels, merged = (faces[name].to_numpy() for name in ("label", "merged"))
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in _TABLES}
    changed = np.flatnonzero(merged != labels)
    return Cleaned(
        report=CleanReport(**tables, reason=reason, labels=merged),
        faces=folder / _FACES,
        stays=open_embeddings(folder / _STAYS),
        dropped=_dropped(keys, labels, reason),
        merged=dict(zip(labels[changed].tolist(), merged[changed].tolist(), strict=True)),
    )


def write_findings(report: CleanReport, folder: Path) -> dict[str, int]:
    """Write what was found as parquet tables; return how much of each."""
    folder.mkdir(exist_ok=True)
    tables = {name: getattr(report, name) for name in _TABLES}
    for name, table in tables.items():
        _write_table(folder / f"{name}.parquet", table)
    return {name: len(table) for name, table in tables.items()}


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_stream(str(path)) as stream:
        pq.write_table(table, stream)


def _in_one_file(pieces: Pieces, source: Embeddings, path: Path) -> tuple[pa.Array, Ints, NDArray[Any]]:
    """Keys, labels and, in a memory-mapped file, embeddings of all faces, identity by identity."""
    embeddings = np.lib.format.open_memmap(path, "w+", np.dtype(source.dtype), (pieces.num_rows, source.size))
    keys, labels, done = [], [], 0
    for piece in pieces.pieces:
        rows, _ = read_piece(piece)
        embeddings[done : done + len(rows.labels)] = rows.embeddings
        done += len(rows.labels)
        keys.append(rows.keys)
        labels.append(rows.labels)
    embeddings.flush()
    return pa.concat_arrays(keys), np.concatenate(labels), embeddings


def _whole(source: Embeddings) -> Rows:
    parts = [read_rows(file.path, 0, file.num_rows) for file in source.files if file.num_rows]
    return Rows(
        pa.concat_arrays([part.keys for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.embeddings for part in parts]),
    )


def _digests(dataset: Dataset, keys: pa.Array, progress: Progress) -> NDArray[np.uint64]:
    """(n,) 64 bits of a hash of each face's JPEG; one that the dataset does not have, or cannot read, has its own."""
    index = dataset.index
    places = ShardRows(index.shard, len(dataset.shards))
    work = list(enumerate(shard_work(dataset, range(len(dataset.shards)))))

    def digest(numbered: tuple[int, ShardWork]) -> dict[str, Any]:
        part, shard = numbered
        found = np.zeros(len(shard.samples), np.uint64)
        for start in range(0, len(found), 512):
            samples = read_samples([shard.path], shard.samples.select(slice(start, start + 512)))
            for row, sample in enumerate(samples, start):
                if not isinstance(sample, Fault):
                    found[row] = int.from_bytes(hashlib.blake2b(sample.jpeg, digest_size=8).digest(), "little")
        return {"part": part, "digests": found}

    known = np.zeros(len(index), np.uint64)
    for result in each_part(digest, work, progress):
        known[places[result["part"]]] = result["digests"]
    own = dataset.find(batches_of(keys))
    found = np.where(own >= 0, known[own], 0)
    return np.where(found == 0, np.arange(1, len(keys) + 1, dtype=np.uint64), found)


def _dropped(keys: pa.Array, labels: Ints, reason: pa.Array) -> pa.Table:
    """Rows of a core set for the faces that do not stay."""
    rows = pa.array(np.flatnonzero(pc.is_valid(reason)))
    none = pa.nulls(len(rows), pa.string())
    columns = [
        keys.take(rows),
        pa.array(labels[rows]),
        np.zeros(len(rows), bool),
        np.zeros(len(rows), np.float32),
        none,
    ]
    return pa.table([*columns, reason.take(rows)], schema=SCHEMA)
