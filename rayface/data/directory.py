"""One dataset directory: its index held against the files, or a scan of bare shards, kept in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq

from .manifest import (
    IDENTITIES,
    INDEX,
    MANIFEST,
    RECOUNT,
    UNFINISHED,
    Manifest,
    manifest_of_scan,
    read_identities,
    read_manifest,
    read_parquet,
    shard_files,
)
from .members import LABEL_SUFFIXES
from .samples import Fault, Sample, locate_member, scan_shard
from .scan import INDEX_SCHEMA, ScanJob, ShardScan, joint_table, scan_shards
from .storage import DataError, FileInfo, join, list_files

_COLUMNS = INDEX_SCHEMA.names[1:]  # all but the keys, which are read only when they are asked for
SOURCE_LABEL = "source_label"  # column of a selection's index: the label as the shard says, where it is another one
_CACHE_VERSION = 3
_NAMED_LABELS = 1000  # labels out of range are named one by one up to here


@dataclass
class Part:
    """One directory: `table` is its index without keys, `rows` the rows of the parquet `keys_file` that it holds."""

    root: str
    manifest: Manifest
    table: pa.Table
    keys_file: str
    rows: np.ndarray | None = None  # None: all
    identities: list[str] | None = None
    faults: list[Fault] = field(default_factory=list)


def load_part(root: str) -> Part:
    """Read one dataset directory; DataError where it is none."""
    files = list_files(root)
    names = {file.name for file in files}
    refuse_unfinished(root, names)
    shards = shard_files(files)
    manifest = read_manifest(root) if MANIFEST in names else None
    if manifest and manifest.selection:
        shards = _selected_files(manifest)
    if not shards:
        raise DataError(f"{root}: no tar shards (*.tar) in this folder")
    part = _indexed(root, shards, manifest) if manifest and INDEX in names else _scanned(root, shards, manifest)
    if IDENTITIES in names:
        part.identities = read_identities(root, part.manifest.num_classes, exact=manifest is not None)
        part.manifest.num_classes = len(part.identities)
    return part


def refuse_unfinished(root: str, names: set[str]) -> None:
    """Raise DataError for a folder whose writer was interrupted: it would pass for a smaller dataset."""
    if UNFINISHED in names:
        raise DataError(f"{root}: the dataset was never finished; run the command that writes it again")


# -- a directory with dataset.json and index.parquet


def _selected_files(manifest: Manifest) -> list[FileInfo]:
    """Return the shards elsewhere that a selection names, under their full paths."""
    folders = dict.fromkeys(entry.path.rpartition("/")[0] for entry in manifest.shards)
    found = {join(folder, file.name): file for folder in folders for file in list_files(folder)}
    paths = [entry.path for entry in manifest.shards if entry.path in found]
    return [replace(found[path], name=path) for path in paths]


def _indexed(root: str, files: list[FileInfo], manifest: Manifest) -> Part:
    path = join(root, INDEX)
    schema = pa.schema([INDEX_SCHEMA.field(name) for name in _COLUMNS])
    if manifest.selection:
        schema = schema.append(pa.field(SOURCE_LABEL, pa.int32()))
    table = read_parquet(path, schema.names)
    try:
        table = table.cast(schema)
    except pa.ArrowException as error:
        raise DataError(f"{path}: {error}; {RECOUNT.format(root)}") from None
    shard = table["shard"].to_numpy()
    expected = [entry.num_images for entry in manifest.shards]
    if (shard < 0).any() or np.bincount(shard, minlength=len(expected)).tolist() != expected:
        raise DataError(f"{path}: sample counts differ from those in {MANIFEST}; {RECOUNT.format(root)}")
    part = Part(root, manifest, table, path)
    kept = _hold_against_files(part, {file.name: file for file in files})
    kept &= _labels_in_range(part)
    if not kept.all():
        part.rows = np.flatnonzero(kept)
        part.table = table.take(pa.array(part.rows))
    return part


def _hold_against_files(part: Part, files: dict[str, FileInfo]) -> np.ndarray:
    """Compare every shard's size with the manifest; where it differs, keep the samples that a scan finds again."""
    kept = np.ones(len(part.table), bool)
    part.faults += unlisted_faults(part.root, part.manifest, files)
    for number, entry in enumerate(part.manifest.shards):
        file = files.get(entry.path)
        if file is not None and file.size == entry.num_bytes:
            continue
        shard = join(part.root, entry.path)
        rows = np.flatnonzero(part.table["shard"].to_numpy() == number)
        found = _found_again(shard, part.table.take(pa.array(rows))) if file else np.zeros(len(rows), bool)
        kept[rows] = found
        part.faults.append(_size_fault(part, number, file, rows[~found]))
    return kept


def _size_fault(part: Part, number: int, file: FileInfo | None, lost: np.ndarray) -> Fault:
    entry = part.manifest.shards[number]
    member, offset = None, 0
    if len(lost):
        member = _key(part, int(lost[0]))
        offset = part.table["offset"][int(lost[0])].as_py()
    size = f"{file.size} bytes are there" if file else "the file is missing"
    reason = f"truncated or replaced: {size}, {MANIFEST} says {entry.num_bytes}; {len(lost)} samples lost from here on"
    shard = join(part.root, entry.path)
    return Fault(shard=shard, member=member, offset=offset, reason=reason, num_lost=len(lost), kind="size")


def unlisted_faults(root: str, manifest: Manifest, names: Sequence[str] | dict[str, FileInfo]) -> list[Fault]:
    """Return a fault, with nothing lost, for every shard in the folder that dataset.json does not name."""
    reason = f"this shard is not listed in {MANIFEST} and is not read"
    unlisted = sorted(set(names) - {entry.path for entry in manifest.shards})
    return [
        Fault(shard=join(root, name), member=None, offset=0, reason=reason, num_lost=0, kind="unlisted")
        for name in unlisted
    ]


def _found_again(shard: str, rows: pa.Table) -> np.ndarray:
    """Return which index rows a scan of their shard finds unchanged, at the same place."""
    samples = (entry for entry in scan_shard(shard, read_jpeg=False) if isinstance(entry, Sample))
    present = {(sample.offset, sample.num_bytes, sample.label) for sample in samples}
    label = SOURCE_LABEL if SOURCE_LABEL in rows.column_names else "label"
    columns = (rows[name].to_pylist() for name in ("offset", "num_bytes", label))
    return np.array([row in present for row in zip(*columns, strict=True)], bool)


def _labels_in_range(part: Part) -> np.ndarray:
    labels = part.table["label"].to_numpy()
    good = (labels >= 0) & (labels < part.manifest.num_classes)
    bad = np.flatnonzero(~good)
    for row in bad[:_NAMED_LABELS].tolist():
        shard = join(part.root, part.manifest.shards[part.table["shard"][row].as_py()].path)
        start, size = part.table["offset"][row].as_py(), part.table["num_bytes"][row].as_py()
        member, offset = locate_member(shard, start, size, LABEL_SUFFIXES)
        reason = f"label {labels[row]} is out of range: {part.manifest.num_classes} classes"
        part.faults.append(Fault(shard=shard, member=member, offset=offset, reason=reason, kind="label"))
    if len(bad) > _NAMED_LABELS:
        more = len(bad) - _NAMED_LABELS
        reason = f"{more} more labels are out of range: {part.manifest.num_classes} classes"
        part.faults.append(Fault(shard=part.root, member=None, offset=0, reason=reason, num_lost=more, kind="label"))
    return good


def _key(part: Part, row: int) -> str:
    return read_parquet(part.keys_file, ["key"])["key"][row].as_py()


# -- a directory without index: scanned once, kept in the cache


def scan_jobs(root: str, names: Sequence[str], num_classes: int | None, *, deep: bool, digest: bool) -> list[ScanJob]:
    """Return one ScanJob for each shard of a folder, in order."""
    return [
        ScanJob(number=number, path=join(root, name), num_classes=num_classes, deep=deep, digest=digest)
        for number, name in enumerate(names)
    ]


def count_faults(root: str, manifest: Manifest, names: Sequence[str], scans: Sequence[ShardScan]) -> list[Fault]:
    """Hold the samples that a scan found against dataset.json: a fault for each shard where the sums do not agree."""
    by_name = dict(zip(names, scans, strict=True))
    faults = []
    for entry in manifest.shards:
        scan = by_name.get(entry.path)
        found = len(scan.table) if scan else 0
        known = sum(fault.num_lost for fault in scan.faults) if scan else 0
        if found + known == entry.num_images:
            continue
        what = f"has {found} readable samples" if scan else "is missing"
        reason = f"the shard {what}, {MANIFEST} says {entry.num_images}"
        lost = max(entry.num_images - found - known, 0)
        shard = join(root, entry.path)
        faults.append(Fault(shard=shard, member=None, offset=0, reason=reason, num_lost=lost, kind="count"))
    return faults


def _scan(root: str, files: list[FileInfo], manifest: Manifest | None) -> tuple[Manifest, pa.Table, list[Fault]]:
    present = [file.name for file in files]
    num_classes = manifest.num_classes if manifest else None
    listed = {entry.path for entry in manifest.shards} if manifest else set(present)
    names = [name for name in present if name in listed]
    jobs = scan_jobs(root, names, num_classes, deep=False, digest=False)
    scans = scan_shards(jobs, sum(file.size for file in files))
    faults = [fault for scan in scans for fault in scan.faults]
    table = joint_table(scans)
    if manifest is None:
        return manifest_of_scan(root, names, scans), table, faults
    # The index counts shards as the manifest does, which may list missing ones and another order.
    place = {entry.path: number for number, entry in enumerate(manifest.shards)}
    numbers = np.array([place[name] for name in names], np.int32)
    table = table.set_column(1, INDEX_SCHEMA.field("shard"), pa.array(numbers[table["shard"].to_numpy()]))
    order = np.argsort(table["shard"].to_numpy(), kind="stable")
    faults += unlisted_faults(root, manifest, present) + count_faults(root, manifest, names, scans)
    return manifest, table.take(pa.array(order)), faults


def cache_folder() -> Path:
    """Return the folder of cached manifests: RAYFACE_CACHE, or the user's cache directory."""
    return Path(os.environ.get("RAYFACE_CACHE") or platformdirs.user_cache_dir("rayface")) / "datasets"


def _scanned(root: str, files: list[FileInfo], manifest: Manifest | None) -> Part:
    """Return the scan of a directory, from the cache where path, sizes, times and manifest are as they were."""
    state = [root, [asdict(file) for file in files], manifest.model_dump() if manifest else None, _CACHE_VERSION]
    folder = cache_folder() / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    if not (folder / MANIFEST).is_file():
        scanned = _scan(root, files, manifest)
        try:
            _store(folder, *scanned)
        except OSError as error:
            raise DataError(
                f"{folder.parent}: cannot be written ({error}); set RAYFACE_CACHE to a folder that can"
            ) from None
    found = json.loads((folder / "faults.json").read_text())
    known = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    index = str(folder / INDEX)
    return Part(root, known, read_parquet(index, _COLUMNS), index, faults=[Fault(**fault) for fault in found])


def _store(folder: Path, manifest: Manifest, table: pa.Table, faults: list[Fault]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    pq.write_table(table, temporary / INDEX)
    (temporary / "faults.json").write_text(json.dumps([asdict(fault) for fault in faults]))
    (temporary / MANIFEST).write_bytes(manifest.to_json())
    try:
        os.rename(temporary, folder)
    except OSError:  # another process was faster and wrote the same
        shutil.rmtree(temporary)
        if not folder.is_dir():
            raise
