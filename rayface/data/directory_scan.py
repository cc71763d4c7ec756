"""Scan the shards of a directory without an index, and compare the result with its manifest."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from rayface.data.listing import refuse_not_a_tar
from rayface.data.manifest import MANIFEST, Manifest, manifest_of_scan
from rayface.data.shards.samples import Fault
from rayface.data.shards.scan import (
    INDEX_SCHEMA,
    ScanJob,
    ShardScan,
    joint_table,
    scan_shards,
    with_prefix,
    with_unique_keys,
)
from rayface.storage import FileInfo, join
from rayface.values import counted


def scan_directory(
    root: str, files: list[FileInfo], manifest: Manifest | None
) -> tuple[Manifest, pa.Table, list[Fault]]:
    """Return manifest, index and faults of a directory from a scan of its shards `files`."""
    present = [file.name for file in files]
    num_classes = manifest.num_classes if manifest else None
    listed = {entry.path for entry in manifest.shards} if manifest else set(present)
    names = [name for name in present if name in listed]
    jobs = scan_jobs(root, names, num_classes, deep=False, digest=False)
    scans = scan_shards(jobs, sum(file.size for file in files))
    faults = [fault for scan in scans for fault in scan.faults]
    if manifest is None:
        refuse_not_a_tar(faults)
        scans = with_unique_keys(names, scans)
        return manifest_of_scan(root, names, scans), joint_table(scans), faults
    faults += unlisted_faults(root, manifest, present) + count_faults(root, manifest, names, scans)
    # The index numbers shards as the manifest does, which may list missing shards and another order.
    by_name = dict(zip(names, scans, strict=True))
    numbered = [(number, entry) for number, entry in enumerate(manifest.shards) if entry.path in by_name]
    names = [entry.path for _, entry in numbered]
    scans = with_unique_keys(names, [with_prefix(entry.key_prefix, by_name[entry.path]) for _, entry in numbered])
    field = INDEX_SCHEMA.field("shard")
    tables = [
        scan.table.set_column(1, field, pa.array(np.full(len(scan.table), number, np.int32)))
        for (number, _), scan in zip(numbered, scans, strict=True)
    ]
    prefixes = {name: scan.key_prefix for name, scan in zip(names, scans, strict=True)}
    shards = [
        entry.model_copy(update={"key_prefix": prefixes.get(entry.path, entry.key_prefix)}) for entry in manifest.shards
    ]
    manifest = manifest.model_copy(update={"shards": shards})
    return manifest, pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables]), faults


def scan_jobs(root: str, names: Sequence[str], num_classes: int | None, *, deep: bool, digest: bool) -> list[ScanJob]:
    """Return one ScanJob for each shard of a folder, in order."""
    return [
        ScanJob(number=number, path=join(root, name), num_classes=num_classes, deep=deep, digest=digest)
        for number, name in enumerate(names)
    ]


def unlisted_faults(root: str, manifest: Manifest, names: Collection[str]) -> list[Fault]:
    """Return a fault, with nothing lost, for every shard in the folder that dataset.json does not list."""
    reason = f"this shard is not listed in {MANIFEST} and is not read"
    unlisted = sorted(set(names) - {entry.path for entry in manifest.shards})
    return [Fault(shard=join(root, name), member=None, reason=reason, num_lost=0, kind="unlisted") for name in unlisted]


def count_faults(root: str, manifest: Manifest, names: Sequence[str], scans: Sequence[ShardScan]) -> list[Fault]:
    """Compare the number of samples found with dataset.json; return a fault for each shard that differs."""
    by_name = dict(zip(names, scans, strict=True))
    faults = []
    for entry in manifest.shards:
        scan = by_name.get(entry.path)
        found = len(scan.table) if scan else 0
        known = sum(fault.num_lost for fault in scan.faults) if scan else 0
        if found + known == entry.num_images:
            continue
        what = f"has {counted(found, 'readable sample')}" if scan else "is missing"
        reason = f"the shard {what}, {MANIFEST} says {entry.num_images}"
        lost = max(entry.num_images - found - known, 0)
        shard = join(root, entry.path)
        faults.append(Fault(shard=shard, member=None, reason=reason, num_lost=lost, kind="count"))
    return faults
