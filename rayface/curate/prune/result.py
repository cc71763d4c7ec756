"""What a finished prune job leaves in its folder, and which of it is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayface.storage import DataError

CORE_SET = "core_set.parquet"
RESULT = "prune.json"  # written last
REPORT = "report.html"
FOUND = "found"
_DATASET, _INDEX = "dataset.json", "index.parquet"


def read_result(root: Path) -> dict[str, Any] | None:
    """Return what prune.json says, or None where it is not there, or other results of the job are not.

    Raises:
        DataError: prune.json is damaged.
    """
    path = root / RESULT
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        return None if _missing(root, result) else result
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error}): delete it and run again") from None


def _missing(root: Path, result: dict[str, Any]) -> bool:
    names = [CORE_SET, REPORT, *(f"{FOUND}/{name}.parquet" for name in result["found"])]
    names += [_DATASET, _INDEX] if "dataset" in result else []
    if not all((root / name).is_file() for name in names):
        return True
    try:
        if pq.read_metadata(root / CORE_SET).num_rows != result["faces_in"]:
            return True
    except (pa.ArrowException, OSError):
        return True
    shards = json.loads((root / _DATASET).read_text())["shards"] if "dataset" in result else []
    own = [(root / shard["path"], shard["num_bytes"]) for shard in shards if "/" not in shard["path"]]
    return not all(path.is_file() and path.stat().st_size == size for path, size in own)
