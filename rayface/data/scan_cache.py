"""Cache of scans of directories without an index: in the user's cache directory, else below /tmp."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayface.credentials import mask, masked
from rayface.data.index import Columns, read_columns
from rayface.data.manifest import INDEX, MANIFEST, Manifest
from rayface.data.shards.samples import Fault
from rayface.storage import CACHE_VARIABLE, DataError, FileInfo, StorageError, cache_folders, one_line

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
    tried = []
    for base in cache_folders("datasets"):
        try:
            _store(base / key, manifest, table, faults)
            return
        except OSError as error:
            tried.append(f"{base}: cannot be written ({one_line(error)})")
    raise DataError(f"{'; '.join(tried)}; set {CACHE_VARIABLE} to a folder that can")


def _store(folder: Path, manifest: Manifest, table: pa.Table, faults: list[Fault]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    try:
        pq.write_table(table, temporary / INDEX)
        (temporary / "faults.json").write_text(json.dumps(masked([asdict(fault) for fault in faults])))
        (temporary / MANIFEST).write_bytes(manifest.to_json())
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process stored the same scan first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
