"""Scanning a directory without an index and comparing it with its manifest."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pytest

from rayface.data.dataset import open_dataset
from rayface.data.directory_scan import scan_directory, scan_jobs
from rayface.data.listing import shard_files
from rayface.data.manifest import read_manifest
from rayface.storage import DataError, list_files
from tests.data.shard_files import members, small_dataset, write_tar


def test_open_dataset_without_index_compares_counts_with_the_manifest(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    (folder / "index.parquet").unlink()
    assert open_dataset(folder, max_corrupt_fraction=0).num_images == 5
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["shards"][0]["num_images"] += 2
    (folder / "dataset.json").write_text(json.dumps(manifest))
    (fault,) = open_dataset(folder, max_corrupt_fraction=0.5).faults
    assert (fault.kind, fault.num_lost) == ("count", 2)


def test_scan_directory_with_a_manifest_numbers_shards_as_it_does(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    manifest = read_manifest(str(folder))
    turned = manifest.model_copy(update={"shards": manifest.shards[::-1]})
    files = shard_files(list_files(str(folder)))
    again, table, faults = scan_directory(str(folder), files, turned)
    assert [entry.path for entry in again.shards] == [entry.path for entry in turned.shards]
    assert faults == []
    first = table.filter(pc.equal(table["shard"], 0))["key"].to_pylist()
    assert first == open_dataset(folder).keys()[-len(first) :]


def test_scan_directory_with_unlisted_and_missing_shards_names_both(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    manifest = read_manifest(str(folder))
    first = manifest.shards[0]
    (folder / first.path).rename(folder / "other.tar")
    _, table, faults = scan_directory(str(folder), shard_files(list_files(str(folder))), manifest)
    assert [(Path(fault.shard).name, fault.kind, fault.num_lost) for fault in faults] == [
        ("other.tar", "unlisted", 0),
        (first.path, "count", first.num_images),
    ]
    assert "the shard is missing, dataset.json says" in faults[1].reason
    assert 0 not in table["shard"].to_pylist()


def test_scan_directory_without_a_manifest_makes_keys_unique(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", members())
    manifest, table, _ = scan_directory(str(tmp_path), shard_files(list_files(str(tmp_path))), None)
    assert (manifest.num_images, manifest.num_classes) == (10, 5)
    assert [entry.key_prefix for entry in manifest.shards] == ["a.tar/", "b.tar/"]
    assert table["key"][0].as_py() == "a.tar/k0"


def test_scan_directory_of_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 400)
    with pytest.raises(DataError, match=r"no tar member.*remove it"):
        scan_directory(str(tmp_path), shard_files(list_files(str(tmp_path))), None)


def test_scan_jobs_of_a_folder_are_numbered_in_order() -> None:
    jobs = scan_jobs("s3://b/set?region=x", ["a.tar", "b.tar"], 7, deep=True, digest=False)
    assert [(job.number, job.path) for job in jobs] == [
        (0, "s3://b/set/a.tar?region=x"),
        (1, "s3://b/set/b.tar?region=x"),
    ]
    assert {(job.num_classes, job.deep, job.digest) for job in jobs} == {(7, True, False)}
