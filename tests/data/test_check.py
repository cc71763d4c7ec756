"""Checking: valid datasets pass, every fault is named with member and byte, missing manifests are written."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from rayface.data.check import _in_manifest_order, check
from rayface.data.dataset import open_dataset
from rayface.data.manifest import Manifest, ShardEntry
from rayface.data.shards import scan
from rayface.data.writer import write_dataset
from rayface.storage import DataError, FileInfo


def jpeg(seed: int) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return simplejpeg.encode_jpeg(image)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [(f"k{i}", i % 4, jpeg(i)) for i in range(12)]
    write_dataset(tmp_path / "set", samples, name="set", identities="abcd", image_size=(32, 32), shard_size=12000)
    return tmp_path / "set"


def patch(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("deep", [False, True])
def test_check_of_a_valid_dataset_passes(folder: Path, deep: bool, recorder: Any) -> None:
    report = check(folder, deep=deep)
    assert report.ok
    assert (report.num_images, report.num_classes, report.faults, report.counts) == (12, 4, (), {})
    assert report.shards == open_dataset(folder).shards or not deep
    assert len(report.shards) > 2
    assert ("scan shards", len(report.shards), len(report.shards)) in recorder.advances


def test_check_of_changed_or_missing_names_is_a_fault_until_they_are_accepted(folder: Path) -> None:
    path = folder / "identities.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("group", [["x"] * 4]).take([3, 2, 1, 0]), path)
    assert check(folder).ok  # the same names, and what a user added
    digest = open_dataset(folder).digest
    pq.write_table(table.set_column(1, "identity", [["a", "c", "b", "d"]]), path)
    (fault,) = check(folder).faults
    assert str(fault) == (
        f"{path}: has changed since the dataset was written: restore it, or run `rayface check --write-manifest "
        f"{folder}` to recount the shards and accept the names"
    )
    assert open_dataset(folder).digest == digest  # of images and labels
    assert check(folder, write_manifest=True).counts == {"digest": 1}
    assert check(folder).ok
    path.unlink()
    (fault,) = check(folder, write_manifest=True).faults
    assert (fault.kind, fault.shard) == ("digest", str(path))
    assert fault.reason.startswith("is missing since the dataset was written")
    assert check(folder).ok


def test_check_of_a_dataset_whose_manifest_has_no_digest_of_the_names_passes(folder: Path) -> None:
    about = json.loads((folder / "dataset.json").read_text())
    assert len(about.pop("identities")) == 64
    (folder / "dataset.json").write_text(json.dumps(about))
    assert check(folder).ok


@pytest.mark.parametrize("processes", [False, True])
def test_check_deep_of_a_corrupt_image_names_it_and_the_digest(
    folder: Path, processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if processes:
        monkeypatch.setattr(scan, "PROCESSES_FROM_BYTES", 0)
    dataset = open_dataset(folder)
    shard = Path(dataset.shards[1].path)
    row = int(np.flatnonzero(dataset.index.shard == 1)[1])
    offset = int(dataset.index.offset[row])
    patch(shard, offset + 512 + 200, b"\xff\xd9" * 100)
    assert check(folder).ok
    report = check(folder, deep=True)
    assert report.counts == {"unreadable": 1, "digest": 1}
    bad = next(fault for fault in report.faults if fault.kind == "unreadable")
    assert (bad.shard, bad.member, bad.offset) == (str(shard), f"k{row}.jpg", offset)
    assert "corrupt image" in bad.reason
    assert report.num_images == 11
    assert report.num_lost == 1


def test_check_of_many_faults_counts_every_kind(folder: Path) -> None:
    dataset = open_dataset(folder)
    paths = [Path(shard.path) for shard in dataset.shards]
    first = {n: int(np.flatnonzero(dataset.index.shard == n)[0]) for n in range(len(paths))}
    patch(paths[0], 0, b"\xff" * 512)
    size = int(dataset.index.num_bytes[first[1]])
    patch(paths[1], size - 512, b"x")  # the label of the second shard's first sample
    with open(paths[2], "r+b") as file:
        file.truncate(int(dataset.index.offset[first[2]]) + 600)
    shutil.copy(paths[1], folder / "more.tar")
    report = check(folder)
    assert not report.ok
    shown = [fault for fault in report.faults if fault.kind not in ("count", "index")]
    named = {(Path(fault.shard).name, fault.member, fault.offset, fault.kind) for fault in shown}
    assert named == {
        (paths[0].name, f"k{first[0]}.jpg", 0, "header"),
        (paths[1].name, f"k{first[1]}.cls", size - 1024, "label"),
        (paths[2].name, f"k{first[2]}.jpg", 0, "truncated"),
        (paths[2].name, None, None, "size"),
        ("more.tar", None, None, "unlisted"),
        ("more.tar", f"k{first[1]}.cls", size - 1024, "label"),
    }
    assert report.num_images + report.num_lost >= 12


def test_check_orders_shards_as_the_manifest_by_a_few_look_ups_of_each() -> None:
    class Name(str):
        looked_up = 0

        def __hash__(self) -> int:
            Name.looked_up += 1
            return super().__hash__()

    names = [Name(f"{number:03d}.tar") for number in range(200)]
    entries = [ShardEntry(path="x", num_images=1, num_bytes=1) for _ in names[:100]]
    for entry, name in zip(entries, reversed(names), strict=False):
        entry.path = name
    manifest = Manifest(name="a", num_classes=1, num_images=100, shards=entries)
    files = [FileInfo(name, 1, 0) for name in names]
    assert _in_manifest_order(files, manifest) == [*names[:99:-1], *names[:100]]
    assert Name.looked_up < 5 * len(names)
    assert _in_manifest_order(files, None) == names


def test_check_of_a_differing_index_names_the_samples(folder: Path) -> None:
    table = pq.read_table(folder / "index.parquet")
    offsets = table["offset"].to_pylist()
    offsets[1] += 512
    pq.write_table(table.set_column(2, table.schema.field(2), [offsets]), folder / "index.parquet")
    report = check(folder)
    assert set(report.counts) == {"index"}
    assert {fault.member for fault in report.faults} == {"k1"}
    assert check(folder, write_manifest=True).manifest_written
    assert check(folder, deep=True).ok


def bare(folder: Path) -> Path:
    for name in ("dataset.json", "index.parquet", "identities.parquet"):
        (folder / name).unlink()
    return folder


def test_write_manifest_for_bare_shards_keeps_the_dataset(folder: Path) -> None:
    before = open_dataset(folder)
    report = check(bare(folder), write_manifest=True)
    assert report.ok
    after = open_dataset(folder)
    assert after.shards == before.shards
    assert after.digest == before.digest
    assert after.keys() == before.keys()
    assert after.index.offset.tolist() == before.index.offset.tolist()
    assert after.about.image_size == (32, 32)
    assert after.identities is None  # nobody has said their names
    assert not (folder / "identities.parquet").exists()
    assert check(folder, deep=True).ok


def test_write_manifest_over_an_old_one_keeps_description_and_names(folder: Path) -> None:
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**manifest, "licence": "mine", "num_images": 99}))
    report = check(folder, write_manifest=True)
    assert report.counts == {"count": 1}
    dataset = open_dataset(folder)
    assert (dataset.about.licence, dataset.identities, dataset.num_images) == ("mine", tuple("abcd"), 12)
    assert json.loads((folder / "dataset.json").read_text())["num_images"] == 12


def test_write_manifest_deletes_its_temporary_files_of_earlier_days(folder: Path) -> None:
    old, new, other = (folder / f".{name}.0123456{n}.tmp" for n, name in enumerate(2 * ("index.parquet",) + ("x",)))
    for file in (old, new, other):
        file.touch()
        os.utime(file, (1, 1))
    os.utime(new)
    check(folder, write_manifest=True)
    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)


def test_write_manifest_into_a_read_only_folder_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare(folder)

    def refuse(path: str, data: bytes) -> None:
        raise PermissionError(30, "Read-only file system", path)

    if os.geteuid():
        folder.chmod(0o555)
    else:  # root writes anywhere
        monkeypatch.setattr("rayface.data.check.write_bytes", refuse)
    with pytest.raises(DataError, match="cannot be written") as caught:
        check(folder, write_manifest=True)
    folder.chmod(0o755)
    assert "\n" not in str(caught.value)


def test_check_of_no_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        check(tmp_path / "none")
    with pytest.raises(DataError, match="no tar shards"):
        check(tmp_path)


def test_check_of_real_images_finds_no_fault(faces: Path) -> None:
    report = check(faces / "celeba_wild")
    assert report.ok
    assert (report.num_images, report.num_classes, len(report.shards)) == (6028, 290, 4)
