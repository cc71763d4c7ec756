"""Scan whole shards in parallel: build their index, and optionally decode every image and compute digests."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa

from rayface.data.decode import decode_image
from rayface.data.keys import batches_of, key_hashes, prefixed, repeated_key
from rayface.data.shards.members import IMAGE_SUFFIXES
from rayface.data.shards.random_access import locate_member, read_samples
from rayface.data.shards.samples import Fault, Sample, SampleIndex
from rayface.data.shards.sequential import scan_shard
from rayface.machine import num_cpus
from rayface.pools import process_pool, thread_pool
from rayface.progress import phase
from rayface.storage import Source

INDEX_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "shard": pa.int32(),
        "offset": pa.int64(),
        "num_bytes": pa.int32(),
        "label": pa.int32(),
    }
)
PROCESSES_FROM_BYTES = 1 << 30  # below this, starting processes takes longer than the work
_DIGEST_CHUNK = 8 << 20

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One shard to scan: its number in the index, the number of classes, whether to decode and to hash it.

    With `name_unused`, files that are no part of a sample are faults.
    """

    number: int
    path: str
    num_classes: int | None = None
    deep: bool = False
    digest: bool = False
    name_unused: bool = False


@dataclass(frozen=True, kw_only=True)
class ShardScan:
    """Result of a scan.

    Attributes:
        table: the shard's rows of the index (INDEX_SCHEMA).
        image_size: (height, width) of the first image.
        key_prefix: what `table` prepends to the shard's own keys.
    """

    table: pa.Table
    faults: list[Fault]
    num_bytes: int
    sha256: str | None
    image_size: tuple[int, int] | None
    key_prefix: str = ""


def scan_shards(jobs: Sequence[ScanJob], num_bytes: int) -> list[ShardScan]:
    """Scan shards in parallel; `num_bytes` is their total size."""
    results = []
    with phase("scan shards", parts=len(jobs)) as current:
        for result in parallel_map(scan_one, jobs, processes=num_bytes >= PROCESSES_FROM_BYTES):
            results.append(result)
            current.advance()
    return results


def scan_one(job: ScanJob) -> ShardScan:
    """Do one ScanJob."""
    keys: list[str] = []
    offsets, sizes, labels, faults = array("q"), array("i"), array("i"), []
    entries = scan_shard(job.path, num_classes=job.num_classes, read_jpeg=job.deep, name_unused=job.name_unused)
    for entry in entries:
        if isinstance(entry, Sample) and job.deep:
            entry = _decoded(job.path, entry)
        if isinstance(entry, Fault):
            faults.append(entry)
            continue
        keys.append(entry.key)
        for column, value in ((offsets, entry.offset), (sizes, entry.num_bytes), (labels, entry.label)):
            column.append(value)
    columns = (keys, np.full(len(keys), job.number, np.int32), offsets, sizes, labels)
    table = index_table(columns)
    if job.digest:
        size, sha256 = _digest(job.path)
    else:
        with Source(job.path) as source:
            size, sha256 = source.size, None
    return ShardScan(table=table, faults=faults, num_bytes=size, sha256=sha256, image_size=_first_size(job.path, table))


def index_table(columns: Iterable[Sequence[object] | np.ndarray]) -> pa.Table:
    """Return rows of the index from its five columns."""
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
    return pa.table(arrays, schema=INDEX_SCHEMA)


def joint_table(scans: Sequence[ShardScan]) -> pa.Table:
    return pa.concat_tables([INDEX_SCHEMA.empty_table(), *(scan.table for scan in scans)])


def with_unique_keys(names: Sequence[str], scans: Sequence[ShardScan]) -> list[ShardScan]:
    """Return the scans with keys that are unique in the dataset: SHARD/KEY if several shards share a key.

    Memory: 8 bytes a sample.
    """
    if not any(scan.key_prefix for scan in scans) and shared_key(scans) is not None:
        return [with_prefix(f"{name}/", scan) for name, scan in zip(names, scans, strict=True)]
    return list(scans)


def with_prefix(prefix: str, scan: ShardScan) -> ShardScan:
    """Return the scan with `prefix` prepended to the shard's own keys."""
    chunks = [prefixed(prefix, chunk) for chunk in scan.table["key"].chunks]
    keys = pa.chunked_array(chunks, INDEX_SCHEMA.field("key").type)
    table = scan.table.set_column(0, INDEX_SCHEMA.field("key"), keys)
    return replace(scan, table=table, key_prefix=prefix)


def shared_key(scans: Sequence[ShardScan]) -> str | None:
    """Return a key that several shards have, None if there is none; a key twice in one shard is a fault."""
    return repeated_key(key_hashes(_keys(scans)), _keys(scans))


def _keys(scans: Sequence[ShardScan]) -> Iterator[pa.Array]:
    for scan in scans:
        yield from batches_of(scan.table["key"])


def _decoded(shard: str, sample: Sample) -> Sample | Fault:
    """Return the sample if its image decodes without a warning, else the fault at the image's header."""
    try:
        decode_image(sample.jpeg)
    except ValueError as error:
        name, offset = locate_member(shard, sample.offset, sample.num_bytes, IMAGE_SUFFIXES)
        return Fault(shard=shard, member=name, offset=offset, reason=f"corrupt image: {error}", kind="unreadable")
    return sample


def _first_size(shard: str, table: pa.Table) -> tuple[int, int] | None:
    """Return (height, width) of the first image, None if there is none."""
    if not len(table):
        return None
    first = [np.array([table[name][0].as_py()]) for name in ("offset", "num_bytes", "label", "label")]
    sample = read_samples([shard], SampleIndex(np.zeros(1, np.int32), *first))[0]
    if isinstance(sample, Fault):
        return None
    try:
        height, width, _ = decode_image(sample.jpeg).shape
    except ValueError:
        return None
    return height, width


def _digest(path: str) -> tuple[int, str | None]:
    digest, at = hashlib.sha256(), 0
    with Source(path) as source:
        while chunk := source.read(at, _DIGEST_CHUNK):
            digest.update(chunk)
            at += len(chunk)
    return at, digest.hexdigest()


def parallel_map(function: Callable[[_In], _Out], items: Sequence[_In], *, processes: bool) -> Iterable[_Out]:
    """Yield function(item) in order, computed by processes (for Python work) or threads (to hide latency)."""
    cores = num_cpus()
    done = 0
    if processes and cores > 1 and len(items) > 1:
        try:
            with process_pool(min(cores, len(items))) as pool:
                for result in pool.map(function, items):
                    yield result
                    done += 1
            return
        except BrokenProcessPool:
            pass  # a script without a __main__ guard cannot start processes; fall back to threads
    with thread_pool(max(1, min(32, 2 * cores, len(items) - done))) as threads:
        yield from threads.map(function, items[done:])
