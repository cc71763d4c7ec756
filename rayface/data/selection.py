"""Datasets that contain some samples of another one: as an index of its shards, or as new shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.data.classes import Ints
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.index import SOURCE_LABEL, count, looked_up
from rayface.data.manifest import IDENTITIES, INDEX, MANIFEST, UNFINISHED, Manifest, Parent, ShardEntry, names_digest
from rayface.data.shards.members import encode_sample
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, SampleIndex
from rayface.data.shards.scan import INDEX_SCHEMA, ScanJob, ShardScan, scan_one
from rayface.data.shards.tar import end_of_archive
from rayface.data.writer import identities_file, shard_name
from rayface.storage import DataError, atomic_stream, join, path_of, write_bytes
from rayface.version import VERSION

_CHUNK = 512
_SELECTION_SCHEMA = INDEX_SCHEMA.append(pa.field(SOURCE_LABEL, pa.int32()))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Samples of a dataset.

    Attributes:
        rows: (n,) int64 positions in the source's index, rising.
        labels: (n,) int32, those of the source; renumbered without gaps if a class lost all of its images.
        identities: names by label, None if the source has none.
        num_classes: number of classes.
    """

    source: Dataset
    rows: NDArray[np.int64]
    labels: NDArray[np.int32]
    identities: tuple[str, ...] | None
    num_classes: int


def select(source: Dataset, rows: NDArray[np.int64], labels: Ints | None = None) -> Selection:
    """Select samples by their positions in the index; ValueError for none.

    Args:
        rows: (n,) in any order.
        labels: (n,) new labels, such as those of merged identities; None: those of the source.
    """
    if not len(rows):
        raise ValueError("selection: no samples of the dataset remain")
    order = np.argsort(rows)
    rows = rows[order]
    own = source.index.label[rows] if labels is None else labels[order].astype(np.int32)
    names, num_classes = source.identities, source.num_classes
    left = np.flatnonzero(count(own, num_classes))  # np.unique would sort a copy
    if len(left) < source.num_classes_with_images:
        own = looked_up(_numbers(left, num_classes), own)
        # Labels without names are numbered again: kept as names, they still say who is the same person elsewhere.
        names = tuple(names[label] for label in left) if names else tuple(map(str, left.tolist()))
        num_classes = len(left)
    return Selection(source=source, rows=rows, labels=own, identities=names, num_classes=num_classes)


def _numbers(used: NDArray[np.int64], num_values: int) -> NDArray[np.int32]:
    """Return the new number of each value, (num_values,), where those in use are numbered without gaps."""
    numbers = np.full(num_values, -1, np.int32)
    numbers[used] = np.arange(len(used), dtype=np.int32)
    return numbers


def write_selection(out: str, selection: Selection, *, name: str) -> Dataset:
    """Write a dataset that refers to the source's shards and lists the selected samples; return it opened."""
    source, rows = selection.source, selection.rows
    index = source.index.select(rows)
    counts = count(index.shard, len(source.shards))
    used = np.flatnonzero(counts)
    number = looked_up(_numbers(used, len(counts)), index.shard)
    digest = hashlib.sha256(source.digest.encode())
    for part in (rows, selection.labels):
        digest.update(np.ascontiguousarray(part).tobytes())
    entries = [
        ShardEntry(
            path=source.shards[shard].path,
            num_images=num_images,
            num_bytes=source.shards[shard].num_bytes,
            sha256=source.shards[shard].sha256,
            key_prefix=source.key_prefixes[shard],
        )
        for shard, num_images in zip(used.tolist(), counts[used].tolist(), strict=True)
    ]
    tables = _index_tables(selection, index, number)
    return _publish(out, selection, tables, entries, name=name, chosen=digest.hexdigest())


def _index_tables(selection: Selection, index: SampleIndex, number: NDArray[np.int32]) -> Iterator[pa.Table]:
    """Yield the selection's index.parquet in batches; `index` and shard `number` are those of its samples."""
    rows, done = selection.rows, 0
    for keys in selection.source.key_batches():
        first, last = np.searchsorted(rows, [done, done + len(keys)])
        here = slice(first, last)
        columns = (
            keys.take(pa.array(rows[here] - done)),
            pa.array(number[here], pa.int32()),
            pa.array(index.offset[here]),
            pa.array(index.num_bytes[here]),
            pa.array(selection.labels[here]),
            pa.array(index.source_label[here]),
        )
        done += len(keys)
        yield pa.table(list(columns), schema=_SELECTION_SCHEMA)


def write_selected_shard(
    folder: str, shards: Sequence[str], samples: SampleIndex, labels: NDArray[np.int32], number: int, key_prefix: str
) -> ShardScan:
    """Copy samples of one shard into a new tar unless it exists, and return a strict scan of it.

    Args:
        samples: samples of one shard, in its order.
        labels: (n,) new labels.
        number: number of the new shard.
        key_prefix: key prefix of the copied shard, so that samples keep their keys of the source.

    Raises:
        DataError: a sample cannot be read.
    """
    path = join(folder, shard_name(number))
    job = ScanJob(number=number, path=path, digest=True)
    try:
        scan = scan_one(job)
    except DataError:  # does not exist yet
        _write_tar(path, _read(shards, samples, labels, key_prefix))
        scan = scan_one(job)
    if len(scan.table) != len(samples) or scan.faults:
        raise DataError(f"{path}: has {len(scan.table)} of {len(samples)} samples: delete it and run again")
    return scan


def write_shards_manifest(out: str, selection: Selection, scans: Sequence[ShardScan], *, name: str) -> Dataset:
    """Write index and manifest of the shards written by write_selected_shard; return the dataset opened.

    The folder is marked UNFINISHED until then: shards without a manifest are read as a dataset.
    """
    entries = [
        ShardEntry(path=shard_name(number), num_images=len(scan.table), num_bytes=scan.num_bytes, sha256=scan.sha256)
        for number, scan in enumerate(scans)
    ]
    return _publish(out, selection, (scan.table for scan in scans), entries, name=name, chosen=None)


def _read(
    shards: Sequence[str], samples: SampleIndex, labels: NDArray[np.int32], key_prefix: str
) -> Iterator[tuple[str, int, bytes]]:
    for start in range(0, len(samples), _CHUNK):
        part = slice(start, start + _CHUNK)
        for sample, label in zip(read_samples(shards, samples.select(part)), labels[part].tolist(), strict=True):
            if isinstance(sample, Fault):
                raise DataError(f"{sample}; it was readable when it was embedded: embed the data again")
            yield key_prefix + sample.key, label, sample.jpeg


def _write_tar(path: str, samples: Iterator[tuple[str, int, bytes]]) -> None:
    with atomic_stream(path) as stream:
        size = 0
        for key, label, jpeg in samples:
            size += stream.write(encode_sample(key, label, jpeg))
        stream.write(end_of_archive(size))


def _publish(
    out: str,
    selection: Selection,
    tables: Iterable[pa.Table],
    entries: list[ShardEntry],
    *,
    name: str,
    chosen: str | None,
) -> Dataset:
    """Write index, identities and, last, dataset.json."""
    source = selection.source
    schema = _SELECTION_SCHEMA if chosen else INDEX_SCHEMA
    with atomic_stream(join(out, INDEX)) as stream, pq.ParquetWriter(stream, schema) as writer:
        for table in tables:
            writer.write_table(table)
    if selection.identities:
        counts = count(selection.labels, selection.num_classes)
        write_bytes(join(out, IDENTITIES), identities_file(selection.identities, counts))
    manifest = Manifest(
        name=name,
        num_classes=selection.num_classes,
        num_images=len(selection.rows),
        image_size=source.about.image_size,
        layout=source.about.layout,
        licence=source.about.licence,
        source=source.about.source,
        parent=Parent(path=source.roots[0] if len(source.roots) == 1 else list(source.roots), digest=source.digest),
        created_by=f"rayface {VERSION}",
        selection=chosen,
        identities=names_digest(selection.identities) if selection.identities else None,
        shards=entries,
    )
    write_bytes(join(out, MANIFEST), manifest.to_json())
    if not chosen:
        path_of(join(out, UNFINISHED)).unlink(missing_ok=True)
    return open_dataset(out, max_corrupt_fraction=0)
