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
from rayface.curate.embeddings import Dtype, Embeddings, Rows, open_embeddings, read_rows, write_part
from rayface.curate.identities import Ints
from rayface.curate.parts import Progress, each_part
from rayface.curate.pieces import Pieces, read_piece
from rayface.data.shards import Dataset, Fault, SampleIndex, read_samples

_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What `clean` found, the embeddings that stay, the others as rows of a core set, and labels that were merged."""

    report: CleanReport
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
    """Clean all faces, in this process.

    Args:
        folder: for two copies of the embeddings, one sorted by identity, one of those that stay.
        exclude: of a test set whose identities are to be looked for.
        dataset: where given, samples of the same bytes are looked for.

    Memory: as of `clean`; the keys of all faces, and those of `exclude` whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys, labels, embeddings = _in_one_file(pieces, source, folder / "faces.npy")
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

    write_part(str(folder / "stays.parquet"), batches(), size=source.size, dtype=dtype, note={})
    changed = np.flatnonzero(report.labels != labels)
    return Cleaned(
        report=report,
        stays=open_embeddings(folder / "stays.parquet"),
        dropped=_dropped(keys, labels, report.reason),
        merged=dict(zip(labels[changed].tolist(), report.labels[changed].tolist(), strict=True)),
    )


def write_findings(report: CleanReport, folder: Path) -> dict[str, int]:
    """Write what was found as parquet tables; return how much of each."""
    folder.mkdir(exist_ok=True)
    tables = {name: getattr(report, name) for name in ("outliers", "duplicates", "conflicts", "bytes", "test")}
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return {name: len(table) for name, table in tables.items()}


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
    """(n,) 64 bits of a hash of each face's JPEG; a face that the dataset does not have gets a number of its own."""
    index = dataset.index
    work = [(shard.path, index.select(index.shard == number)) for number, shard in enumerate(dataset.shards)]

    def digest(shard: tuple[str, SampleIndex]) -> dict[str, Any]:
        path, samples = shard
        samples = SampleIndex(np.zeros_like(samples.shard), *list(vars(samples).values())[1:])
        found: dict[str, bytes] = {}
        for start in range(0, len(samples), 512):
            for sample in read_samples([path], samples.select(slice(start, start + 512))):
                if not isinstance(sample, Fault):
                    found[sample.key] = hashlib.blake2b(sample.jpeg, digest_size=8).digest()
        return found

    known: dict[str, bytes] = {}
    for found in each_part(digest, work, progress):
        known.update(found)
    own = (number.to_bytes(8, "little") for number in range(len(keys)))
    return np.frombuffer(b"".join(known.get(k, o) for k, o in zip(keys.to_pylist(), own, strict=True)), np.uint64)


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
