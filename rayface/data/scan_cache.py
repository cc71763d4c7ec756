"""Cache of scans of directories without an index: in the user's cache directory, else below /tmp."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayface.credentials import mask, masked
from rayface.data.index import Columns, read_columns
from rayface.data.manifest import INDEX, MANIFEST, Manifest
from rayface.data.shards.samples import Fault
from rayface.storage import FileInfo, StorageError, cache_folders, store_in_cache

_VERSION = 6


@dataclass(frozen=True, kw_only=True)
class CachedScan:
    """A cached scan; `columns` are the index without keys, `index_file` is the parquet file with all of it."""

    manifest: Manifest
    columns: Columns
    index_file: str
    faults: list[Fault]


def scan_key(root: str, files: list[FileInfo], manifest: Manifest | None) -> str:
    """Return the cache key of a directory: a function of path, sizes, times and manifest."""
    state = [mask(root), [asdict(file) for file in files], manifest.model_dump() if manifest else None, _VERSION]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]


def load_scan(key: str) -> CachedScan | None:
    """Return a cached scan, None if there is no valid one."""
    for base in cache_folders("datasets"):
        folder = base / key
        if not os.path.isdir(folder):  # Path.is_dir raises if the home is not accessible
            continue
        try:
            manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
            faults = [Fault(**fault) for fault in json.loads((folder / "faults.json").read_text())]
            index = str(folder / INDEX)
            columns, _ = read_columns(index, len(manifest.shards))
            return CachedScan(manifest=manifest, columns=columns, index_file=index, faults=faults)
        except (OSError, ValueError, StorageError):
            shutil.rmtree(folder, ignore_errors=True)  # corrupt, such as after a crash: scan again
    return None


def store_scan(key: str, manifest: Manifest, table: pa.Table, faults: list[Fault]) -> None:
    """Store a scan in the first writable folder; DataError if there is none."""

    def write(folder: Path) -> None:
        pq.write_table(table, folder / INDEX)
        (folder / "faults.json").write_text(json.dumps(masked([asdict(fault) for fault in faults])))
        (folder / MANIFEST).write_bytes(manifest.to_json())

    store_in_cache("datasets", key, write)
