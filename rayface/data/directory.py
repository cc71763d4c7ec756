"""Open one dataset directory: validate its index against the files, or scan bare shards and cache the scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rayface.data.classes import refuse_holes
from rayface.data.directory_scan import scan_directory, unlisted_faults
from rayface.data.index import (
    SOURCE_LABEL,
    Columns,
    Ints,
    first_outside,
    keep_rows,
    looked_up,
    read_columns,
    read_keys_at,
)
from rayface.data.listing import (
    DATASET_FOLDER,
    faults_not_read,
    is_compressed,
    named_shards,
    refuse_not_read,
    tars_not_read,
)
from rayface.data.manifest import (
    IDENTITIES,
    INDEX,
    MANIFEST,
    UNFINISHED,
    Manifest,
    ShardEntry,
    read_identities,
    read_manifest,
    recount,
)
from rayface.data.scan_cache import load_scan, scan_key, store_scan
from rayface.data.shards.members import LABEL_SUFFIXES
from rayface.data.shards.random_access import locate_member
from rayface.data.shards.samples import Fault, Sample
from rayface.data.shards.scan import (
    PROCESSES_FROM_BYTES,
    parallel_map,
)
from rayface.data.shards.sequential import scan_shard
from rayface.storage import DataError, FileInfo, join, list_entries, list_files, split
from rayface.values import counted

_NAMED_LABELS = 1000  # maximum number of labels out of range that are named one by one


@dataclass
class Part:
    """One directory.

    Attributes:
        columns: its index without keys.
        keys_file: parquet file with its keys.
        rows: valid rows of `keys_file`, None for all."""

    root: str
    manifest: Manifest
    columns: Columns
    keys_file: str
    rows: np.ndarray | None = None  # None: all
    identities: list[str] | None = None
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.columns["shard"])


def load_part(root: str) -> Part:
    """Read one dataset directory; DataError if it is none."""
    files, folders = list_entries(root, DATASET_FOLDER)
    names = {file.name for file in files}
    refuse_unfinished(root, names)
    shards = named_shards(root, files)
    manifest = read_manifest(root) if MANIFEST in names else None
    if manifest and manifest.selection:
        if INDEX not in names:  # without it, all samples of the shards would be read
            raise DataError(f"{root}: {INDEX} is missing, which lists the selected samples; select them again")
        shards = _selected_files(manifest)
    if not manifest:  # a manifest lists the shards
        not_read = tars_not_read(root, files, folders, dataset_marker=MANIFEST if shards else None)
        refuse_not_read(root, not_read, has_shards=bool(shards))
    elif not shards:
        raise DataError(f"{root}: no tar shards (*.tar) in this folder")
    part = _indexed(root, shards, manifest) if manifest and INDEX in names else _scanned(root, shards, manifest)
    part.faults += faults_not_read(root, [name for name in sorted(names) if is_compressed(name)])
    if IDENTITIES in names:
        part.identities = read_identities(root, part.manifest.num_classes, exact=manifest is not None)
        part.manifest.num_classes = len(part.identities)
    else:
        refuse_holes(root, part.columns["label"], part.manifest.num_classes)
    return part


def refuse_unfinished(root: str, names: set[str]) -> None:
    """Raise DataError for a folder whose writer was interrupted, which looks like a smaller dataset."""
    if UNFINISHED in names:
        raise DataError(f"{root}: the dataset is unfinished; run the command that writes it again")


# -- a directory with dataset.json and index.parquet


def _selected_files(manifest: Manifest) -> list[FileInfo]:
    """Return the shards that a selection refers to, under their full paths."""
    folders = dict.fromkeys(split(entry.path)[0] for entry in manifest.shards)
    found = {join(folder, file.name): file for folder in folders for file in list_files(folder)}
    paths = [entry.path for entry in manifest.shards if entry.path in found]
    return [replace(found[path], name=path) for path in paths]


def _indexed(root: str, files: list[FileInfo], manifest: Manifest) -> Part:
    path = join(root, INDEX)
    try:
        num_rows = sum(entry.num_images for entry in manifest.shards)
        columns, counts = read_columns(
            path, len(manifest.shards), num_rows, source_label=manifest.selection is not None
        )
    except DataError as error:
        raise DataError(f"{error}; {recount(root)}") from None
    if counts.tolist() != [entry.num_images for entry in manifest.shards]:
        raise DataError(f"{path}: sample counts differ from those in {MANIFEST}; {recount(root)}")
    if (row := first_outside(columns, [entry.num_bytes for entry in manifest.shards])) is not None:
        where = {name: int(column[row]) for name, column in columns.items()}
        raise DataError(f"{path}: row {row} is outside of its shard ({where}); {recount(root)}")
    part = Part(root, manifest, columns, path)
    kept = _compare_with_files(part, {file.name: file for file in files})
    kept &= _labels_in_range(part)
    if not kept.all():
        keep_rows(columns, kept)
        part.rows = np.flatnonzero(kept)
    return part


def _compare_with_files(part: Part, files: dict[str, FileInfo]) -> np.ndarray:
    """Compare every shard's size with the manifest; if it differs, keep the samples that a scan finds again."""
    entries = part.manifest.shards
    part.faults += unlisted_faults(part.root, part.manifest, files)
    missing = np.array([entry.path not in files for entry in entries], bool)
    sizes = [files[entry.path].size if entry.path in files else entry.num_bytes for entry in entries]
    changed = [number for number, entry in enumerate(entries) if sizes[number] != entry.num_bytes]
    kept = ~looked_up(missing, part.columns["shard"])
    lost: dict[int, Ints] = {}
    rows = _rows_of_shards(part, changed)
    for number, found in zip(changed, _found_again(part, rows), strict=True):
        kept[rows[number]] = found
        lost[number] = rows[number][~found]
    members = _first_members(part, lost)
    for number, entry in enumerate(entries):
        if missing[number]:
            part.faults.append(_size_fault(part, entry, "the file is missing", entry.num_images, None, None))
        elif number in lost:
            size = f"{sizes[number]} bytes are there"
            part.faults.append(_size_fault(part, entry, size, len(lost[number]), *members.get(number, (None, None))))
    return kept


def _size_fault(
    part: Part, entry: ShardEntry, size: str, num_lost: int, member: str | None, offset: int | None
) -> Fault:
    lost = f"{counted(num_lost, 'sample')} lost from here on"
    reason = f"truncated or replaced: {size}, {MANIFEST} says {entry.num_bytes}; {lost}"
    shard = join(part.root, entry.path)
    return Fault(shard=shard, member=member, offset=offset, reason=reason, num_lost=num_lost, kind="size")


def _rows_of_shards(part: Part, numbers: Sequence[int]) -> dict[int, Ints]:
    """Return the rows of some shards, in one pass."""
    if not numbers:
        return {}
    wanted = np.zeros(len(part.manifest.shards), bool)
    wanted[list(numbers)] = True
    rows = np.flatnonzero(looked_up(wanted, part.columns["shard"]))
    shards = part.columns["shard"][rows]
    order = np.argsort(shards, kind="stable")
    bounds = np.searchsorted(shards[order], np.array(numbers)).tolist()
    return {n: rows[order[a:b]] for n, a, b in zip(numbers, bounds, [*bounds[1:], len(rows)], strict=True)}


def _first_members(part: Part, lost: dict[int, Ints]) -> dict[int, tuple[str, int]]:
    """Return member name and offset of the first lost sample of each shard that lost any."""
    first = {number: int(rows[0]) for number, rows in lost.items() if len(rows)}
    keys = read_keys_at(part.keys_file, sorted(first.values()))
    prefixes = [entry.key_prefix for entry in part.manifest.shards]
    return {
        number: (keys[row].removeprefix(prefixes[number]), int(part.columns["offset"][row]))
        for number, row in first.items()
    }


def _found_again(part: Part, rows: dict[int, Ints]) -> Iterable[np.ndarray]:
    """Yield, for each shard, which of its index rows a scan finds unchanged."""
    names = ("offset", "num_bytes", SOURCE_LABEL if SOURCE_LABEL in part.columns else "label")
    jobs = [
        (join(part.root, part.manifest.shards[number].path), [part.columns[name][own] for name in names])
        for number, own in rows.items()
    ]
    num_bytes = sum(part.manifest.shards[number].num_bytes for number in rows)
    return parallel_map(_present, jobs, processes=num_bytes >= PROCESSES_FROM_BYTES)


def _present(job: tuple[str, list[Ints]]) -> np.ndarray:
    shard, columns = job
    samples = (entry for entry in scan_shard(shard, read_jpeg=False) if isinstance(entry, Sample))
    present = {(sample.offset, sample.num_bytes, sample.label) for sample in samples}
    return np.array([row in present for row in zip(*(column.tolist() for column in columns), strict=True)], bool)


def _labels_in_range(part: Part) -> np.ndarray:
    labels = part.columns["label"]
    good = (labels >= 0) & (labels < part.manifest.num_classes)
    bad = np.flatnonzero(~good)
    for row in bad[:_NAMED_LABELS].tolist():
        shard = join(part.root, part.manifest.shards[part.columns["shard"][row]].path)
        start, size = int(part.columns["offset"][row]), int(part.columns["num_bytes"][row])
        member, offset = locate_member(shard, start, size, LABEL_SUFFIXES)
        reason = f"label {labels[row]} is out of range: {counted(part.manifest.num_classes, 'class')}"
        part.faults.append(Fault(shard=shard, member=member, offset=offset, reason=reason, kind="label"))
    if len(bad) > _NAMED_LABELS:
        more = len(bad) - _NAMED_LABELS
        reason = f"{counted(more, 'more label')} out of range: {counted(part.manifest.num_classes, 'class')}"
        part.faults.append(Fault(shard=part.root, member=None, reason=reason, num_lost=more, kind="label"))
    return good


# -- a directory without index: scanned once and cached


def _scanned(root: str, files: list[FileInfo], manifest: Manifest | None) -> Part:
    """Return the scan of a directory, from the cache if the directory is unchanged."""
    key = scan_key(root, files, manifest)
    found = load_scan(key)
    if found is None:
        store_scan(key, *scan_directory(root, files, manifest))
        found = load_scan(key)
        assert found is not None
    return Part(root, found.manifest, found.columns, found.index_file, faults=found.faults)
