"""Scanning a shard from front to back: every sample, and each kind of corruption at byte level."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.sequential import scan_shard
from tests.data.shard_files import JPEG, bad, good, members, only_fault, patch, write_tar


def test_scan_of_webdataset_writer_with_cls_first_finds_every_sample(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i, (key, jpeg) in enumerate(JPEG.items()):
            writer.write({"__key__": key, "jpg": jpeg, "cls": i, "json": {"age": 3}})
    samples = list(scan_shard(tmp_path / "a.tar"))
    assert [(s.key, s.label, s.jpeg) for s in samples] == [(k, i, j) for i, (k, j) in enumerate(JPEG.items())]
    dataset = open_dataset(tmp_path)
    assert read_samples([s.path for s in dataset.shards], dataset.index) == samples


def test_scan_of_members_that_are_no_samples_ignores_them(tmp_path: Path) -> None:
    extra = [("README.md", b"x"), (".hidden.jpg", b"x"), ("k9.json", b"{}"), ("noext", b"x")]
    write_tar(tmp_path / "a.tar", extra[:2] + members() + extra[2:])
    entries = list(scan_shard(tmp_path / "a.tar"))
    assert good(entries) == list(JPEG)
    assert not bad(entries)


def test_scan_takes_suffixes_as_webdataset_does(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.thumb.jpg", b"no"), ("a.JPEG", b"yes"), ("a.cls", b" 7\n")])
    (sample,) = scan_shard(tmp_path / "a.tar")
    assert (sample.key, sample.label, sample.jpeg) == ("a", 7, b"yes")


@pytest.mark.parametrize("window", [64, 1 << 22])
def test_scan_after_a_corrupt_jpg_header_loses_one_sample(
    tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayface.data.shards.sequential._SEQUENTIAL_WINDOW", window)
    offsets = write_tar(tmp_path / "a.tar", members())
    patch(tmp_path / "a.tar", offsets["k2.jpg"] + 150, b"\xff\xff")
    lost = offsets["k2.cls"] - offsets["k2.jpg"]
    keys = only_fault(tmp_path / "a.tar", "k2.jpg", offsets["k2.jpg"], "corrupt tar header", f"{lost} bytes skipped")
    assert keys == ["k0", "k1", "k3", "k4"]


def test_scan_after_a_corrupt_cls_header_or_flipped_bit_loses_one_sample(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    patch(tmp_path / "a.tar", offsets["k2.cls"], b"x")  # only the name: the checksum tells
    assert only_fault(tmp_path / "a.tar", "k2.cls", offsets["k2.cls"], "checksum") == ["k0", "k1", "k3", "k4"]


def test_scan_after_a_corrupt_first_header_loses_one_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members())
    patch(tmp_path / "a.tar", 0, b"\xaa" * 512)
    assert only_fault(tmp_path / "a.tar", "k0.jpg", 0, "corrupt tar header") == ["k1", "k2", "k3", "k4"]


def test_scan_of_corruption_across_two_samples_names_both(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    start = offsets["k1.cls"]
    patch(tmp_path / "a.tar", start, b"\x55" * (offsets["k2.jpg"] + 512 - start))
    entries = list(scan_shard(tmp_path / "a.tar"))
    assert good(entries) == ["k0", "k3", "k4"]
    assert [(f.member, f.offset) for f in bad(entries)] == [("k1.cls", start), ("k2.jpg", start)]


@pytest.mark.parametrize("where", ["header", "data", "before cls", "cls header"])
def test_scan_of_a_truncated_shard_ends_with_a_fault(tmp_path: Path, where: str) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    jpg, cls = offsets["k3.jpg"], offsets["k3.cls"]
    cut = {"header": jpg + 100, "data": jpg + 900, "before cls": cls, "cls header": cls + 511}[where]
    with open(tmp_path / "a.tar", "r+b") as file:
        file.truncate(cut)
    member = {"header": None, "data": "k3.jpg"}.get(where, "k3.cls")
    offset = jpg if where in ("header", "data") else cls
    assert only_fault(tmp_path / "a.tar", member, offset, "truncated") == ["k0", "k1", "k2"]


def test_scan_without_an_end_marker_loses_no_sample(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    end = offsets["k4.cls"] + 1024
    with open(tmp_path / "a.tar", "r+b") as file:
        file.truncate(end)
    assert only_fault(tmp_path / "a.tar", None, end, "no end-of-archive marker") == list(JPEG)
    assert open_dataset(tmp_path, max_corrupt_fraction=0).num_images == 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"seven", "label 'seven' is not an integer"),
        (b"", "label '' is not an integer"),
        (b"1_0", "not an integer"),
        (b"+1", "not an integer"),
        (b"-3", "label '-3' is negative"),
        (b"99999999999", "label 99999999999 is out of range"),
        (b"\xd9\xa3", "not an integer"),
    ],
)
def test_scan_of_an_invalid_label_is_a_fault(tmp_path: Path, text: bytes, reason: str) -> None:
    files = [(name, text if name == "k1.cls" else data) for name, data in members()]
    offsets = write_tar(tmp_path / "a.tar", files)
    assert only_fault(tmp_path / "a.tar", "k1.cls", offsets["k1.cls"], reason) == ["k0", "k2", "k3", "k4"]


@pytest.mark.parametrize(("drop", "kept"), [("k1.cls", "k1.jpg"), ("k1.jpg", "k1.cls")])
def test_scan_of_a_missing_member_is_a_fault(tmp_path: Path, drop: str, kept: str) -> None:
    offsets = write_tar(tmp_path / "a.tar", [(name, data) for name, data in members() if name != drop])
    reason = f"no {'label (.cls, .json, .txt)' if drop == 'k1.cls' else 'image'} with this key"
    assert only_fault(tmp_path / "a.tar", kept, offsets[kept], reason) == ["k0", "k2", "k3", "k4"]


def test_scan_of_a_duplicate_key_is_a_fault(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    more = [("k1.jpg", b"again"), ("k1.cls", b"1")]
    again = write_tar(tmp_path / "a.tar", members() + more)["k1.jpg"]
    assert again > offsets["k4.cls"]
    assert only_fault(tmp_path / "a.tar", "k1.jpg", again, "duplicate key k1") == list(JPEG)


def test_scan_of_a_hard_link_is_a_fault(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members()[:2]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("l.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "k0.jpg"
        at = tar.offset
        tar.addfile(link)
        info = tarfile.TarInfo("l.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"0"))
    assert only_fault(tmp_path / "a.tar", "l.jpg", at, "link") == ["k0"]


def test_scan_of_random_corruption_never_raises_and_keeps_valid_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    offsets = write_tar(tmp_path / "a.tar", members(), tarfile.PAX_FORMAT)
    clean = (tmp_path / "a.tar").read_bytes()
    for _ in range(150):
        at = int(rng.integers(0, offsets["k3.jpg"]))
        noise = rng.integers(0, 256, int(rng.integers(1, 2000)), dtype=np.uint8).tobytes()
        data = bytearray(clean)
        data[at : at + len(noise)] = noise
        (tmp_path / "b.tar").write_bytes(data[: len(clean)])
        entries = list(scan_shard(tmp_path / "b.tar"))
        for key in ("k0", "k1", "k2", "k3", "k4"):
            end = offsets[f"{key}.cls"] + 1024
            if end <= at or at + len(noise) <= offsets[f"{key}.jpg"]:
                assert key in good(entries)
