"""Grouping neighbouring members into samples; incomplete groups are faults, other fields are ignored."""

import tarfile
from pathlib import Path

import pytest

from rayface.data.check import check
from rayface.data.shards.samples import Fault, Sample
from rayface.data.shards.sequential import scan_shard
from tests.data.scanned_tars import JPEG, Files, scanned
from tests.data.shard_files import write_tar


@pytest.mark.parametrize("labels_first", [False, True])
def test_names_with_dots_are_separate_samples(tmp_path: Path, labels_first: bool) -> None:
    files: Files = []
    for i in range(6):
        pair = [(f"a.b/name.{i:04d}.jpg", JPEG[i]), (f"a.b/name.{i:04d}.cls", b"%d" % i)]
        files += pair[::-1] if labels_first else pair
    samples, faults = scanned(tmp_path, files)
    assert samples == [(f"a.b/name.{i:04d}", i, JPEG[i]) for i in range(6)]
    assert not faults
    assert check(tmp_path, deep=True).ok


def test_other_fields_of_a_sample_are_ignored(tmp_path: Path) -> None:
    files = [("a.cls", b"1"), ("a.depth.png", JPEG[5]), ("a.jpg", JPEG[0]), ("a.thumb.jpg", JPEG[5]), ("a.x.npy", b"")]
    files += [("b.cls", b"2"), ("b.mask.json", b'{"label": 3}'), ("b.mask.png", JPEG[5]), ("b.jpg", JPEG[1])]
    files += [("README.md", b"x"), ("num.json", b"{}"), ("notes.txt", b"none"), ("._a.jpg", JPEG[5]), ("plain", b"x")]
    samples, faults = scanned(tmp_path, files)
    assert (samples, faults) == ([("a", 1, JPEG[0]), ("b", 2, JPEG[1])], [])


def test_incomplete_groups_are_named_and_counted(tmp_path: Path) -> None:
    files = [("a.jpg", JPEG[0]), ("a.cls", b"1"), ("b.0.jpg", JPEG[1]), ("b.1.jpg", JPEG[2]), ("b.cls", b"1")]
    files += [("c.heic", b"\0\0\0\x18ftypheic"), ("c.cls", b"1"), ("d.jp2", b"\0\0\0\x0cjP  \r\n"), ("e", JPEG[3])]
    files += [("f.jpg", JPEG[4]), ("f.id", b"4"), ("g.txt", b"3"), ("a.jpg", JPEG[5])]
    samples, faults = scanned(tmp_path, files)
    assert samples == [("a", 1, JPEG[0])]
    assert faults == [
        ("b.0.jpg", "missing member", 1),
        ("b.1.jpg", "missing member", 1),
        ("b.cls", "missing member", 0),  # the label of the two before it
        ("c.heic", "missing member", 1),
        ("d.jp2", "missing member", 1),
        ("e", "missing member", 1),
        ("f.jpg", "missing member", 1),
        ("g.txt", "missing member", 1),
        ("a.jpg", "missing member", 1),
    ]


def test_incomplete_sample_names_what_is_missing_whatever_the_sample_before_it_has(tmp_path: Path) -> None:
    files = [("a.png", JPEG[0]), ("a.txt", b"1"), ("b.jpg", JPEG[1]), ("c.cls", b"1")]
    files += [("d.cls", b"1"), ("d.heic", b"\0\0\0\x18ftypheic"), ("e.cls", b"1"), ("e.notes", b"text")]
    write_tar(tmp_path / "a.tar", files)
    faults = [entry for entry in scan_shard(tmp_path / "a.tar") if isinstance(entry, Fault)]
    assert [(fault.member, fault.reason) for fault in faults] == [
        ("b.jpg", "no label (.cls, .json, .txt) with this key beside it"),
        ("c.cls", "no image with this key beside it"),
        ("d.heic", "HEIF image of a format or suffix that is not read: save it as .jpg or .png"),
        ("e.cls", "no image with this key beside it"),
    ]


def test_images_apart_from_their_labels_are_each_lost_once(tmp_path: Path) -> None:
    files = [(f"{i}.jpg", JPEG[i]) for i in range(6)] + [(f"{i}.cls", b"0") for i in range(6)]
    write_tar(tmp_path / "a.tar", files)
    faults = [entry for entry in scan_shard(tmp_path / "a.tar") if isinstance(entry, Fault)]
    assert sum(fault.num_lost for fault in faults) == 6
    assert "must be neighbours (tar --sort=name)" in faults[-1].reason


def test_corrupt_cls_is_not_replaced_by_another_field(tmp_path: Path) -> None:
    files = [m for i in range(3) for m in ((f"{i}.cls", b"0"), (f"{i}.jpg", JPEG[i]), (f"{i}.txt", b"61"))]
    write_tar(tmp_path / "a.tar", files)
    with tarfile.open(tmp_path / "a.tar") as tar:
        offset = tar.getmember("1.cls").offset
    with open(tmp_path / "a.tar", "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 512)
    entries = list(scan_shard(tmp_path / "a.tar"))
    assert [(e.key, e.label) for e in entries if isinstance(e, Sample)] == [("0", 0), ("2", 0)]
    assert [(f.member, f.num_lost) for f in entries if isinstance(f, Fault)] == [("1.cls", 1)]
