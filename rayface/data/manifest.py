"""One dataset directory: dataset.json and its parquet files, or a scan of bare shards kept in the user's cache."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from .samples import Fault, Sample, scan_shard
from .storage import DataError, FileInfo, Source, join, list_files, read_bytes

MANIFEST = "dataset.json"
INDEX = "index.parquet"
IDENTITIES = "identities.parquet"
UNFINISHED = ".unfinished"  # lies in a folder while it is written

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int32()),
        ("label", pa.int32()),
    ]
)
_CHECK = "run `rayface check --write-manifest {}` to count the shards anew"


class ShardEntry(BaseModel):
    """A shard as dataset.json names it: `path` relative to the folder."""

    path: str
    num_images: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    sha256: str | None = None


class Manifest(BaseModel):
    """dataset.json."""

    name: str
    num_classes: int = Field(ge=1)
    num_images: int = Field(ge=0)
    image_size: tuple[int, int] | None = None
    layout: Literal["shuffled", "by_identity"] = "shuffled"
    licence: str = ""
    source: str = ""
    parent: dict[str, Any] | None = None
    created_by: str = ""
    shards: list[ShardEntry]

    def to_json(self) -> bytes:
        return (json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n").encode()


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


def shard_files(files: list[FileInfo]) -> list[FileInfo]:
    """Return the tar files of a folder that are no leftovers of an interrupted writer."""
    return [file for file in files if file.name.endswith(".tar") and not file.name.startswith(".")]


def load_part(root: str) -> Part:
    """Read one dataset directory; DataError where it is none."""
    files = list_files(root)
    names = {file.name for file in files}
    if UNFINISHED in names:
        raise DataError(f"{root}: the dataset was never finished; run the command that writes it again")
    shards = shard_files(files)
    manifest = read_manifest(root) if MANIFEST in names else None
    if not shards:
        raise DataError(f"{root}: no tar shards (*.tar) in this folder")
    if manifest is None or INDEX not in names:
        part = _cached_scan(root, shards, manifest)
    else:
        part = _indexed(root, shards, manifest)
    if IDENTITIES in names:
        part.identities = read_identities(root, part.manifest.num_classes)
    return part


def read_manifest(root: str) -> Manifest:
    """Read and validate dataset.json; DataError names the first field that is wrong."""
    path = join(root, MANIFEST)
    try:
        manifest = Manifest.model_validate_json(read_bytes(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise DataError(f"{path}: {where}: {first['msg']}; {_CHECK.format(root)}") from None
    for entry in manifest.shards:
        if entry.path.startswith("/") or ".." in entry.path.split("/"):
            raise DataError(f"{path}: shards: {entry.path!r} leads out of the folder")
    return manifest


def read_identities(root: str, num_classes: int) -> list[str]:
    """Return the identity names by label; DataError unless labels are 0..num_classes-1 and names are unique."""
    path = join(root, IDENTITIES)
    table = read_parquet(path, ["label", "identity"])
    order = np.argsort(table["label"].to_numpy(), kind="stable")
    if not np.array_equal(table["label"].to_numpy()[order], np.arange(num_classes)):
        raise DataError(f"{path}: label: must be every number from 0 to {num_classes - 1} once")
    names = table["identity"].take(pa.array(order)).to_pylist()
    if len(set(names)) != len(names):
        raise DataError(f"{path}: identity: names must be unique, for datasets are joined by them")
    return names


def read_parquet(path: str, columns: list[str]) -> pa.Table:
    """Read columns of a parquet file; DataError where it is damaged or lacks one."""
    try:
        with Source(path) as source:
            return pq.read_table(io.BytesIO(source.read(0, source.size)), columns=columns).select(columns)
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{path}: not a parquet file with columns {', '.join(columns)} ({str(error)[:80]})") from None


# -- a directory with dataset.json and index.parquet


def _indexed(root: str, files: list[FileInfo], manifest: Manifest) -> Part:
    path = join(root, INDEX)
    table = read_parquet(path, INDEX_SCHEMA.names[1:])
    try:
        table = table.cast(pa.schema(list(INDEX_SCHEMA)[1:]))
    except pa.ArrowException as error:
        raise DataError(f"{path}: {error}; {_CHECK.format(root)}") from None
    shard = table["shard"].to_numpy()
    counts = np.bincount(shard, minlength=len(manifest.shards)) if len(shard) and shard.min() >= 0 else np.zeros(0)
    if counts.tolist() != [entry.num_images for entry in manifest.shards]:
        raise DataError(f"{path}: sample counts differ from those in {MANIFEST}; {_CHECK.format(root)}")
    part = Part(root, manifest, table, path)
    kept, part.faults = _held_against_files(root, manifest, table, path, {file.name: file for file in files})
    kept &= _labels_in_range(part)
    if not kept.all():
        part.rows = np.flatnonzero(kept)
        part.table = table.take(pa.array(part.rows))
    return part


def _held_against_files(
    root: str, manifest: Manifest, table: pa.Table, index: str, files: dict[str, FileInfo]
) -> tuple[np.ndarray, list[Fault]]:
    """Compare every shard's size with the manifest; where it differs, keep the samples that a scan still finds."""
    kept = np.ones(len(table), bool)
    faults = []
    listed = {entry.path for entry in manifest.shards}
    for name in files.keys() - listed:
        reason = f"this shard is not listed in {MANIFEST} and is not read"
        faults.append(Fault(shard=join(root, name), member=None, offset=0, reason=reason, num_lost=0))
    for number, entry in enumerate(manifest.shards):
        file = files.get(entry.path)
        if file is not None and file.size == entry.num_bytes:
            continue
        shard = join(root, entry.path)
        rows = np.flatnonzero(table["shard"].to_numpy() == number)
        found = np.zeros(len(rows), bool) if file is None else _found_again(shard, table.take(pa.array(rows)))
        kept[rows] = found
        size = "is missing" if file is None else f"has {file.size} bytes"
        lost = rows[~found]
        reason = f"truncated or replaced: {size}, {MANIFEST} says {entry.num_bytes}; {len(lost)} samples lost from here"
        member, offset = None, 0
        if len(lost):
            keys = read_parquet(index, ["key"])["key"]
            member, offset = f"{keys[int(lost[0])].as_py()}.jpg", int(table["offset"][int(lost[0])].as_py())
        faults.append(Fault(shard=shard, member=member, offset=offset, reason=reason, num_lost=len(lost)))
    return kept, faults


def _found_again(shard: str, rows: pa.Table) -> np.ndarray:
    """Return which index rows a scan of their shard finds unchanged, at the same place."""
    samples = (entry for entry in scan_shard(shard, read_jpeg=False) if isinstance(entry, Sample))
    present = {(sample.offset, sample.num_bytes, sample.label) for sample in samples}
    columns = (rows[name].to_pylist() for name in ("offset", "num_bytes", "label"))
    return np.array([row in present for row in zip(*columns, strict=True)], bool)


def _labels_in_range(part: Part) -> np.ndarray:
    labels = part.table["label"].to_numpy()
    good = (labels >= 0) & (labels < part.manifest.num_classes)
    for row in np.flatnonzero(~good).tolist():
        shard = part.manifest.shards[part.table["shard"][row].as_py()].path
        key = read_parquet(part.keys_file, ["key"])["key"][row].as_py()
        reason = f"label {labels[row]} is out of range: {part.manifest.num_classes} classes"
        offset = part.table["offset"][row].as_py()
        part.faults.append(Fault(shard=join(part.root, shard), member=f"{key}.cls", offset=offset, reason=reason))
    return good


# -- a bare directory: scanned once, kept in the cache


def scan_shards(paths: list[str], num_classes: int | None = None) -> tuple[pa.Table, list[Fault]]:
    """Scan shards in parallel for their index (schema INDEX_SCHEMA, in shard order) and their faults."""

    def scan(item: tuple[int, str]) -> tuple[pa.Table, list[Fault]]:
        number, path = item
        keys: list[str] = []
        offsets, sizes, labels, faults = array("q"), array("i"), array("i"), []
        for entry in scan_shard(path, num_classes=num_classes, read_jpeg=False):
            if isinstance(entry, Fault):
                faults.append(entry)
                continue
            keys.append(entry.key)
            offsets.append(entry.offset)
            sizes.append(entry.num_bytes)
            labels.append(entry.label)
        columns = [keys, np.full(len(keys), number, np.int32), offsets, sizes, labels]
        arrays = [pa.array(c, type=f.type) for c, f in zip(columns, INDEX_SCHEMA, strict=True)]
        return pa.table(arrays, schema=INDEX_SCHEMA), faults

    # Threads: on a disk the tar parsing holds them back to one core, on an object store they hide its latency.
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        results = list(pool.map(scan, enumerate(paths)))
    return pa.concat_tables([table for table, _ in results]), [f for _, faults in results for f in faults]


def manifest_of_scan(root: str, files: list[FileInfo], table: pa.Table, faults: list[Fault]) -> Manifest:
    """Return the manifest of a bare directory, from its files and their index."""
    if not len(table):
        why = f"; the first fault: {faults[0]}" if faults else ""
        raise DataError(f"{root}: no readable sample (KEY.jpg + KEY.cls) in {len(files)} shards{why}")
    labels = table["label"].to_numpy()
    counts = np.bincount(table["shard"].to_numpy(), minlength=len(files))
    # No manifest says how the samples lie: neighbours of one class mean that identities lie together.
    neighbours = float(np.mean(labels[1:] == labels[:-1])) if len(labels) > 1 else 0.0
    grouped = neighbours > 0.5 and labels.min() != labels.max()
    return Manifest(
        name=Path(root.partition("?")[0]).name,
        num_classes=int(labels.max()) + 1,
        num_images=len(table),
        layout="by_identity" if grouped else "shuffled",
        shards=[
            ShardEntry(path=file.name, num_images=int(count), num_bytes=file.size)
            for file, count in zip(files, counts, strict=True)
        ],
    )


def scan_part(root: str, files: list[FileInfo], manifest: Manifest | None) -> tuple[Manifest, pa.Table, list[Fault]]:
    """Scan a directory without index; counts of an existing manifest are held against what is found."""
    if manifest is None:
        table, faults = scan_shards([join(root, file.name) for file in files])
        return manifest_of_scan(root, files, table, faults), table, faults
    present = {file.name for file in files}
    entries = [entry for entry in manifest.shards if entry.path in present]
    table, faults = scan_shards([join(root, entry.path) for entry in entries], manifest.num_classes)
    numbers = np.array([i for i, entry in enumerate(manifest.shards) if entry.path in present], np.int32)
    table = table.set_column(1, "shard", pa.array(numbers[table["shard"].to_numpy()]))
    counts = np.bincount(table["shard"].to_numpy(), minlength=len(manifest.shards))
    for entry, found in zip(manifest.shards, counts.tolist(), strict=True):
        shard = join(root, entry.path)
        known = sum(fault.num_lost for fault in faults if fault.shard == shard)
        if found + known != entry.num_images:
            what = "is missing" if entry.path not in present else f"has {found} readable samples"
            faults.append(
                Fault(
                    shard=shard,
                    member=None,
                    offset=0,
                    reason=f"the shard {what}, {MANIFEST} says {entry.num_images}",
                    num_lost=max(entry.num_images - found - known, 0),
                )
            )
    return manifest, table, faults


def cache_folder() -> Path:
    """Return the folder of cached manifests: RAYFACE_CACHE, or the user's cache directory."""
    return Path(os.environ.get("RAYFACE_CACHE") or platformdirs.user_cache_dir("rayface")) / "datasets"


def _cached_scan(root: str, files: list[FileInfo], manifest: Manifest | None) -> Part:
    """Return the scan of a directory, from the cache where path, sizes, times and manifest are as they were."""
    state = [root, [asdict(file) for file in files], manifest.model_dump() if manifest else None, 1]
    folder = cache_folder() / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    if not (folder / MANIFEST).is_file():
        scanned, table, faults = scan_part(root, files, manifest)
        _store(folder, scanned, table, faults)
    found = json.loads((folder / "faults.json").read_text())
    known = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    table = read_parquet(str(folder / INDEX), INDEX_SCHEMA.names[1:])
    return Part(root, known, table, str(folder / INDEX), faults=[Fault(**fault) for fault in found])


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


def digest_of(manifest: Manifest) -> str:
    """Return the sha256 over the shards' digests, or over names and sizes where one has none."""
    full = all(entry.sha256 for entry in manifest.shards)
    lines = [entry.sha256 if full else f"{entry.path} {entry.num_bytes}" for entry in manifest.shards]
    return hashlib.sha256("\n".join(str(line) for line in lines).encode()).hexdigest()
