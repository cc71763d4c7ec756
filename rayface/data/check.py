"""Check a dataset directory: every header, label and count; optionally every digest and image."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rayface.data.classes import holes_in, num_with_images
from rayface.data.dataset import Shard
from rayface.data.directory import refuse_unfinished
from rayface.data.directory_scan import count_faults, scan_jobs, unlisted_faults
from rayface.data.label_join import normalised
from rayface.data.listing import DATASET_FOLDER, faults_not_read, named_shards, refuse_not_read, tars_not_read
from rayface.data.manifest import (
    IDENTITIES,
    INDEX,
    MANIFEST,
    Manifest,
    manifest_of_scan,
    names_digest,
    read_identities,
    read_manifest,
    read_parquet,
    recount,
)
from rayface.data.shards.members import parse_name
from rayface.data.shards.samples import Fault, ShardRows
from rayface.data.shards.scan import (
    INDEX_SCHEMA,
    ShardScan,
    joint_table,
    scan_shards,
    shared_key,
    with_prefix,
    with_unique_keys,
)
from rayface.storage import (
    DAY,
    DataError,
    FileInfo,
    delete_temporary,
    is_local,
    join,
    list_entries,
    normalise,
    split,
    write_bytes,
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of `check`: readable samples, classes, shards as counted, every fault, and `counts` of faults by kind."""

    path: str
    num_images: int
    num_classes: int
    num_classes_with_images: int
    num_bytes: int
    shards: tuple[Shard, ...]
    faults: tuple[Fault, ...]
    counts: dict[str, int]
    deep: bool
    manifest_written: bool
    shared_key: str | None
    """A key that several shards have, so that the dataset's keys are SHARD/KEY; None: keys are the shards' own."""

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def num_lost(self) -> int:
        """Number of samples known to be lost."""
        return sum(fault.num_lost for fault in self.faults)


def check(path: str | Path, *, deep: bool = False, write_manifest: bool = False) -> Report:
    """Read every shard of a dataset directory from front to back, in parallel, and compare it with its manifest.

    Args:
        deep: also compare each shard's sha256 with the manifest, and decode every image. Large datasets use processes:
            a script that calls this needs a `__main__` guard.
        write_manifest: write dataset.json and index.parquet, without what cannot be read.

    Raises:
        DataError: there is no dataset, or the directory cannot be written.
    """
    root = normalise(path)
    files, folders = list_entries(root, DATASET_FOLDER)
    names = {file.name for file in files}
    manifest = _manifest_to_check(root, names)
    shards = named_shards(root, files)
    not_read = tars_not_read(root, files, folders, dataset_marker=MANIFEST if shards else None)
    refuse_not_read(root, [] if shards else not_read, has_shards=bool(shards))
    ordered = _in_manifest_order(shards, manifest)
    jobs = scan_jobs(
        root, ordered, manifest.num_classes if manifest else None, deep=deep, digest=deep or write_manifest
    )
    scans = scan_shards(jobs, sum(file.size for file in shards))
    faults = [fault for scan in scans for fault in scan.faults] + faults_not_read(root, not_read)
    shared = shared_key(scans)
    if manifest:
        faults += _compare_with_manifest(root, manifest, ordered, scans, has_index=INDEX in names)
    scans = with_unique_keys(ordered, scans)
    found = manifest_of_scan(root, ordered, scans)
    if manifest:  # keep its description
        found = manifest.model_copy(update={"num_images": found.num_images, "shards": found.shards})
    labels = joint_table(scans)["label"].to_numpy()
    faults += _check_labels(root, found, labels, has_names=IDENTITIES in names, counted=manifest is None)
    if write_manifest:
        if holes := next((fault for fault in faults if fault.kind == "labels"), None):
            raise DataError(f"{root}: {holes.reason}")
        _write_manifest(root, found, scans)
    return Report(
        path=root,
        num_images=found.num_images,
        num_classes=found.num_classes,
        num_classes_with_images=num_with_images(labels, found.num_classes),
        num_bytes=sum(entry.num_bytes for entry in found.shards),
        shards=tuple(Shard(**{**entry.model_dump(), "path": join(root, entry.path)}) for entry in found.shards),
        faults=tuple(faults),
        counts=dict(Counter(fault.kind for fault in faults).most_common()),
        deep=deep,
        manifest_written=write_manifest,
        shared_key=shared,
    )


def _check_labels(
    root: str, found: Manifest, labels: NDArray[np.int32], *, has_names: bool, counted: bool
) -> list[Fault]:
    """Return the faults of names and labels; a dataset with names has as many classes as these, and their digest."""
    expected, found.identities = found.identities, None
    if not has_names:
        reason = holes_in(root, labels, found.num_classes)
        holes = [Fault(shard=root, member=None, reason=reason, num_lost=0, kind="labels")] if reason else []
        return holes + ([_changed_names(root, "is missing")] if expected else [])
    identities = read_identities(root, found.num_classes, exact=not counted)
    found.num_classes, found.identities = len(identities), names_digest(identities)
    changed = [_changed_names(root, "has changed")] if expected not in (None, found.identities) else []
    return changed + _equal_names(root, identities)


def _changed_names(root: str, what: str) -> Fault:
    reason = f"{what} since the dataset was written: restore it, or {recount(root)} and accept the names"
    return Fault(shard=join(root, IDENTITIES), member=None, reason=reason, num_lost=0, kind="digest")


def _manifest_to_check(root: str, names: set[str]) -> Manifest | None:
    """Return the manifest, None if there is none; DataError for a folder that has no complete shards of its own."""
    refuse_unfinished(root, names)
    manifest = read_manifest(root) if MANIFEST in names else None
    if manifest and manifest.selection:
        folders = ", ".join(dict.fromkeys(split(entry.path)[0] for entry in manifest.shards))
        raise DataError(f"{root}: has no shards, it is a selection of those of other datasets: check {folders}")
    return manifest


def _in_manifest_order(shards: list[FileInfo], manifest: Manifest | None) -> list[str]:
    """Return shard names in the manifest's order, which is that of the index; unlisted shards come last."""
    unlisted = dict.fromkeys(file.name for file in shards)
    listed = [entry.path for entry in manifest.shards if entry.path in unlisted] if manifest else []
    for name in listed:
        unlisted.pop(name, None)
    return [*listed, *unlisted]


def _compare_with_manifest(
    root: str, manifest: Manifest, names: list[str], scans: list[ShardScan], *, has_index: bool
) -> list[Fault]:
    faults = unlisted_faults(root, manifest, names) + count_faults(root, manifest, names, scans)
    by_name = dict(zip(names, scans, strict=True))
    for entry in manifest.shards:
        scan = by_name.get(entry.path)
        if scan is None:
            continue
        shard = join(root, entry.path)
        if scan.num_bytes != entry.num_bytes:
            reason = f"{scan.num_bytes} bytes are there, {MANIFEST} says {entry.num_bytes}"
            faults.append(Fault(shard=shard, member=None, reason=reason, num_lost=0, kind="size"))
        elif scan.sha256 and entry.sha256 and scan.sha256 != entry.sha256:
            reason = f"sha256 is {scan.sha256[:12]}..., {MANIFEST} says {entry.sha256[:12]}..."
            faults.append(Fault(shard=shard, member=None, reason=reason, num_lost=0, kind="digest"))
    total = sum(entry.num_images for entry in manifest.shards)
    if manifest.num_images != total:
        reason = f"num_images is {manifest.num_images}, its shards have {total}"
        faults.append(Fault(shard=join(root, MANIFEST), member=None, reason=reason, num_lost=0, kind="count"))
    return faults + (_compare_with_index(root, manifest, names, scans) if has_index else [])


def _compare_with_index(root: str, manifest: Manifest, names: list[str], scans: list[ShardScan]) -> list[Fault]:
    """Compare index.parquet with the shards; return a fault for every sample that is missing or differs."""
    path = join(root, INDEX)
    table = read_parquet(path, INDEX_SCHEMA.names)
    by_name = dict(zip(names, scans, strict=True))
    present = [(number, entry) for number, entry in enumerate(manifest.shards) if entry.path in by_name]
    scanned = [with_prefix(entry.key_prefix, by_name[entry.path]) for _, entry in present]
    places = ShardRows(table["shard"].to_numpy(), len(manifest.shards))
    faults = []
    if (key := shared_key(scanned)) is not None:
        reason = f"key {key!r} is of several samples; {recount(root)}"
        faults.append(Fault(shard=path, member=None, reason=reason, num_lost=0, kind="duplicate key"))
    for (number, entry), scan in zip(present, scanned, strict=True):
        rows = _rows_at(table, places[number])
        lost = {parse_name(fault.member).key for fault in scan.faults if fault.member}
        for full, offset in _differing(scan.table, rows):
            key = full.removeprefix(entry.key_prefix)
            if key in lost:
                continue  # reported by the scan
            reason = f"{INDEX} and shard differ about this sample"
            shard = join(root, entry.path)
            faults.append(Fault(shard=shard, member=key, offset=offset, reason=reason, num_lost=0, kind="index"))
    return faults


def _rows_at(table: pa.Table, rows: slice | NDArray[np.int64]) -> pa.Table:
    if isinstance(rows, slice):
        return table.slice(rows.start, rows.stop - rows.start)
    mask = np.zeros(len(table), bool)
    mask[rows] = True
    return table.filter(pa.array(mask))  # `take` would copy all keys into one array


def _equal_names(root: str, identities: Sequence[str]) -> list[Fault]:
    """Return a fault, with nothing lost, for every name that two labels have in different Unicode forms."""
    first: dict[str, int] = {}
    faults = []
    for label, name in enumerate(identities):
        other = first.setdefault(normalised(name), label)
        if other != label:
            reason = (
                f"labels {other} and {label} have one name in two Unicode forms ({name}): they are read as one class"
            )
            path = join(root, IDENTITIES)
            faults.append(Fault(shard=path, member=None, reason=reason, num_lost=0, kind="name"))
    return faults


def _differing(found: pa.Table, rows: pa.Table) -> list[tuple[str, int]]:
    """Return (key, offset) of the samples that differ between the two tables."""
    columns = ["key", "offset", "num_bytes", "label"]
    if all(found[name].equals(rows[name].cast(found[name].type)) for name in columns):
        return []
    a, b = (set(zip(*(table[name].to_pylist() for name in columns), strict=True)) for table in (found, rows))
    return sorted({(row[0], row[1]) for row in a ^ b}, key=lambda pair: pair[1])


def _write_manifest(root: str, manifest: Manifest, scans: list[ShardScan]) -> None:
    """Write the index and, last, dataset.json; no names, as label numbers would join different people by name."""
    table = joint_table(scans)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    try:
        if is_local(root):
            for name in (INDEX, MANIFEST):
                delete_temporary(root, of=name, min_age=DAY)
        write_bytes(join(root, INDEX), buffer.getvalue())
        write_bytes(join(root, MANIFEST), manifest.to_json())
    except (OSError, pa.ArrowException) as error:
        remedy = "without write_manifest the manifest is kept in the user's cache"
        raise DataError(f"{root}: cannot be written ({' '.join(str(error).split())}); {remedy}") from None
