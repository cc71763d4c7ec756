"""Scanning whole shards in parallel: index, images, digests."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from rayface.data.check import check
from rayface.data.shards.scan import (
    ScanJob,
    joint_table,
    parallel_map,
    scan_one,
    scan_shards,
    shared_key,
    with_prefix,
    with_unique_keys,
)
from tests.data.scanned_tars import picture
from tests.data.shard_files import members, write_tar


def test_check_deep_of_a_corrupt_png_names_it(tmp_path: Path) -> None:
    bad = bytearray(picture(1, "png"))
    bad[len(bad) // 2] ^= 1
    files = [("a.png", picture(0, "png")), ("a.cls", b"0"), ("b.c.png", bytes(bad)), ("b.c.cls", b"1")]
    write_tar(tmp_path / "a.tar", files)
    (fault,) = check(tmp_path, deep=True).faults
    assert (fault.member, fault.num_lost) == ("b.c.png", 1)


def job(path: Path, **changes: Any) -> ScanJob:
    return ScanJob(**{"number": 4, "path": str(path), **changes})


def test_scan_one_of_a_shard_gives_its_index_and_the_size_of_the_first_image(tmp_path: Path) -> None:
    files = [m for i in range(3) for m in ((f"k{i}.png", picture(i, "png")), (f"k{i}.cls", b"%d" % i))]
    offsets = write_tar(tmp_path / "a.tar", files)
    found = scan_one(job(tmp_path / "a.tar", digest=True))
    assert found.table.to_pydict() == {
        "key": ["k0", "k1", "k2"],
        "shard": [4, 4, 4],
        "offset": [offsets[f"k{i}.png"] for i in range(3)],
        "num_bytes": [offsets["k1.png"], offsets["k2.png"] - offsets["k1.png"], found.table["num_bytes"][2].as_py()],
        "label": [0, 1, 2],
    }
    content = (tmp_path / "a.tar").read_bytes()
    assert (found.num_bytes, found.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert (found.image_size, found.faults) == ((32, 32), [])
    assert scan_one(job(tmp_path / "a.tar")).sha256 is None


def test_scan_one_with_labels_out_of_range_names_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members())
    found = scan_one(job(tmp_path / "a.tar", num_classes=4))
    assert [(fault.member, fault.kind) for fault in found.faults] == [("k4.cls", "label")]
    assert found.image_size is None  # bytes that no decoder reads


def test_scan_shards_of_many_keeps_their_order_and_shows_progress(tmp_path: Path, recorder: Any) -> None:
    for number in range(6):
        write_tar(tmp_path / f"{number}.tar", [(f"k{number}.jpg", b"\xff\xd8"), (f"k{number}.cls", b"0")])
    jobs = [job(tmp_path / f"{number}.tar", number=number) for number in range(6)]
    scans = scan_shards(jobs, 0)
    assert joint_table(scans)["key"].to_pylist() == [f"k{number}" for number in range(6)]
    assert joint_table([]).num_rows == 0
    assert recorder.advances[-1] == ("scan shards", 6, 6)


def test_keys_shared_by_shards_get_the_shard_name_unless_they_have_a_prefix(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", members())
    scans = [scan_one(job(tmp_path / f"{name}.tar")) for name in "ab"]
    assert shared_key(scans[:1]) is None
    assert shared_key(scans) == "k0"
    unique = with_unique_keys(["a.tar", "b.tar"], scans)
    assert [scan.key_prefix for scan in unique] == ["a.tar/", "b.tar/"]
    assert unique[1].table["key"][0].as_py() == "b.tar/k0"
    assert with_unique_keys(["a.tar"], scans[:1]) == scans[:1]
    own = [with_prefix("x/", scans[0]), with_prefix("y/", scans[1])]
    assert with_unique_keys(["a.tar", "b.tar"], own) == own


def test_parallel_map_of_threads_raises_the_error_of_an_item() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("item 3")
        return item * 2

    assert list(parallel_map(work, range(3), processes=False)) == [0, 2, 4]
    with pytest.raises(ValueError, match="item 3"):
        list(parallel_map(work, range(5), processes=False))
