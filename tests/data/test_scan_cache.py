"""The cache of scans of bare directories."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from rayface.data.dataset import open_dataset
from rayface.storage import DataError
from tests.data.shard_files import JPEG, members, write_tar


def test_bare_directory_is_scanned_once_and_cached(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "set" / "x-0.tar", members()[:4])
    write_tar(tmp_path / "set" / "x-1.tar", members()[4:])
    dataset = open_dataset(tmp_path / "set")
    assert (dataset.num_images, dataset.num_classes, dataset.name) == (5, 5, "set")
    assert dataset.keys() == list(JPEG)
    assert dataset.index.shard.tolist() == [0, 0, 1, 1, 1]
    assert {column.dtype.name for column in (dataset.index.shard, dataset.index.label)} == {"int32"}
    assert (dataset.index.offset.dtype, dataset.index.num_bytes.dtype) == (np.int64, np.int32)
    assert not any(path.name.startswith(".tmp") for path in own_cache.rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr("rayface.data.directory_scan.scan_shards", None)  # a second scan would fail
        again = open_dataset(tmp_path / "set")
    assert again.digest == dataset.digest
    assert pickle.loads(pickle.dumps(again)).index.offset.tolist() == dataset.index.offset.tolist()
    write_tar(tmp_path / "set" / "x-1.tar", members()[4:8])
    assert open_dataset(tmp_path / "set").num_images == 4


def test_scan_cache_without_a_writable_home_uses_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "set" / "a.tar", members())
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv("RAYFACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert open_dataset(tmp_path / "set").keys() == list(JPEG)
    (kept,) = (tmp_path / "tmp").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patched:
        patched.setattr("rayface.data.directory_scan.scan_shards", None)  # a second scan would fail
        assert open_dataset(tmp_path / "set").num_images == 5
    kept.chmod(0o777)  # somebody else could have written it
    with pytest.raises(DataError, match="set RAYFACE_CACHE"):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize("name", ["index.parquet", "faults.json", "dataset.json"])
def test_scan_cache_that_is_corrupt_is_replaced(tmp_path: Path, own_cache: Path, name: str) -> None:
    write_tar(tmp_path / "set" / "a.tar", members())
    open_dataset(tmp_path / "set")
    (damaged,) = own_cache.rglob(name)
    damaged.write_bytes(b"")
    assert open_dataset(tmp_path / "set").keys() == list(JPEG)
    assert damaged.stat().st_size


def test_scan_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "set" / "a.tar", members())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="RAYFACE_CACHE") as caught:
        open_dataset(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_scan_cache_deletes_folders_of_killed_writers_after_a_day(tmp_path: Path, own_cache: Path) -> None:
    write_tar(tmp_path / "set" / "x-0.tar", members()[:4])
    old, new = (own_cache / "datasets" / name for name in (".tmp-old", ".tmp-new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    open_dataset(tmp_path / "set")
    assert (old.exists(), new.exists()) == (False, True)
