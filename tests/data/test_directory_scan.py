"""Scanning a directory without an index and comparing it with its manifest."""

import json
from pathlib import Path

from rayface.data.dataset import open_dataset
from tests.data.shard_files import small_dataset


def test_open_dataset_without_index_compares_counts_with_the_manifest(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    (folder / "index.parquet").unlink()
    assert open_dataset(folder, max_corrupt_fraction=0).num_images == 5
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["shards"][0]["num_images"] += 2
    (folder / "dataset.json").write_text(json.dumps(manifest))
    (fault,) = open_dataset(folder, max_corrupt_fraction=0.5).faults
    assert (fault.kind, fault.num_lost) == ("count", 2)
