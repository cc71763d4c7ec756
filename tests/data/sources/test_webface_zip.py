"""Zip archives of folders of images: identities, zip64, what is left out, corruption, bombs."""

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from rayface.data.convert import convert
from rayface.data.dataset import Dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources.webface_zip import WebfaceZipSource
from rayface.storage import DataError


def jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


JPEG = [jpeg(seed) for seed in range(8)]


def archive(members: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED, zip64: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as written:
        for name, data in members.items():
            with written.open(name, "w", force_zip64=zip64) as member:
                member.write(data)
    return stream.getvalue()


def samples(dataset: Dataset) -> dict[str, tuple[str, bytes]]:
    read = [s for s in read_samples(dataset.shard_paths(), dataset.index) if isinstance(s, Sample)]
    assert dataset.identities is not None
    return {sample.key: (dataset.identities[sample.label], sample.jpeg) for sample in read}


def left_out(dataset: Dataset) -> list[tuple[str, str]]:
    return sorted((fault.kind, fault.member) for fault in dataset.faults if fault.member)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("zip64", [False, True])
def test_webface_zips_join_the_folders_of_equal_name(tmp_path: Path, method: int, zip64: bool) -> None:
    png = cv2.imencode(".png", np.full((16, 16, 3), 9, np.uint8))[1].tobytes()
    first = {"0_0/0_0_0000000/0_0.jpg": JPEG[0], "0_0/0_0_0000000/0_1.jpg": JPEG[1], "0_0/0_0_0000001/1_0.png": png}
    second = {"0_1/0_0_0000001/1_1.jpg": JPEG[2], "0_1/0_1_0000000/2_0": JPEG[3]}
    for name, members in (("0_0.zip", first), ("0_1.zip", second)):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(archive(members, method=method, zip64=zip64))
    dataset = convert(WebfaceZipSource(tmp_path / "in"), tmp_path / "out")
    assert samples(dataset) == {
        "0_0/0_0_0000000/0_0": ("0_0_0000000", JPEG[0]),
        "0_0/0_0_0000000/0_1": ("0_0_0000000", JPEG[1]),
        "0_0/0_0_0000001/1_0": ("0_0_0000001", png),
        "0_1/0_0_0000001/1_1": ("0_0_0000001", JPEG[2]),
        "0_1/0_1_0000000/2_0": ("0_1_0000000", JPEG[3]),
    }
    assert (dataset.faults, dataset.about.image_size) == ((), (16, 16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_zip64_archive_behind_other_bytes_is_read(tmp_path: Path) -> None:
    data = b"MZ" * 500 + archive({"a/0.jpg": JPEG[0], "b/0.jpg": JPEG[1]}, zip64=True)
    (tmp_path / "x.ZIP").write_bytes(data)
    dataset = convert(WebfaceZipSource(tmp_path / "x.ZIP"), tmp_path / "out")
    assert samples(dataset) == {"a/0": ("a", JPEG[0]), "b/0": ("b", JPEG[1])}


def test_zip_members_that_are_no_images_or_lead_out_are_left_out_by_name(tmp_path: Path) -> None:
    members = {
        "a/0.jpg": JPEG[0],
        "../../a/1.jpg": JPEG[1],
        "/etc/a/2.jpg": JPEG[2],
        "a/../../b/3.jpg": JPEG[3],
        "a\\..\\..\\b\\4.jpg": JPEG[4],
        "__MACOSX/a/._0.jpg": b"x",
        "a/readme.txt": b"text",
        "a/bad.jpg": JPEG[5][:-40],
        "5.jpg": JPEG[5],
        "empty/": b"",
        "set/c/": b"",
        "set/c/.DS_Store": b"x",
        "set/d/": b"",
        "set/d/6.jpg": JPEG[6],
        "set/": b"",
    }
    (tmp_path / "x.zip").write_bytes(archive(members))
    dataset = convert(WebfaceZipSource(tmp_path / "x.zip"), tmp_path / "out")
    assert samples(dataset) == {"a/0": ("a", JPEG[0]), "set/d/6": ("d", JPEG[6])}
    assert left_out(dataset) == [
        ("hidden", "__MACOSX/a/._0.jpg"),
        ("identity", "empty"),
        ("identity", "set/c"),
        ("name", "../../a/1.jpg"),
        ("name", "/etc/a/2.jpg"),
        ("name", "a/../../b/3.jpg"),
        ("name", "a\\..\\..\\b\\4.jpg"),
        ("other file", "a/readme.txt"),
        ("outside", "5.jpg"),
        ("unreadable", "a/bad.jpg"),
    ]


def edited(data: bytes, name: bytes, at: int, layout: str, value: int) -> bytes:
    """Change a field of a member's entry in the directory."""
    changed = bytearray(data)
    entry = data.rindex(b"PK\1\2", 0, data.rindex(name))
    struct.pack_into(layout, changed, entry + at, value)
    return bytes(changed)


GOOD = archive({"a/0.jpg": JPEG[0], "b/0.jpg": JPEG[1], "c/0.jpg": JPEG[2]})
BOMB = archive({"a/0.jpg": JPEG[0], "b/0.jpg": bytes(100 << 20), "c/0.jpg": JPEG[2]}, method=zipfile.ZIP_DEFLATED)
CHANGED = {
    "bomb": (BOMB, "104857600 bytes, more than 67108864"),
    "bomb with a lie": (edited(BOMB, b"b/0.jpg", 24, "<I", len(JPEG[1])), "size or checksum"),
    "4 GB": (edited(GOOD, b"b/0.jpg", 24, "<I", 0xFFFFFFFE), "4294967294 bytes, more than"),
    "4 GB packed": (edited(GOOD, b"b/0.jpg", 20, "<I", 0xFFFFFFFE), "overlaps"),
    "overlap": (edited(GOOD, b"b/0.jpg", 20, "<I", len(JPEG[1]) + 60), "overlaps"),
    "encrypted": (edited(GOOD, b"b/0.jpg", 8, "<H", 1), "encrypted"),
    "lzma": (edited(GOOD, b"b/0.jpg", 10, "<H", 14), "packed by method 14"),
    "deflated": (edited(GOOD, b"b/0.jpg", 10, "<H", 8), "its header differs"),
    "checksum": (edited(GOOD, b"b/0.jpg", 16, "<I", 0), "size or checksum"),
    "smaller": (edited(GOOD, b"b/0.jpg", 24, "<I", 5), "size or checksum"),
    "name": (GOOD.replace(b"b/0.jpg", b"b/1.jpg", 1), "its header differs"),
    "data": (GOOD.replace(JPEG[1], JPEG[1][:100] + b"?" + JPEG[1][101:]), "size or checksum"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_zip_member_that_is_corrupt_is_a_fault_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    data, reason = CHANGED[name]
    (tmp_path / "x.zip").write_bytes(data)
    dataset = convert(WebfaceZipSource(tmp_path / "x.zip"), tmp_path / "out")
    assert samples(dataset) == {"a/0": ("a", JPEG[0]), "c/0": ("c", JPEG[2])}
    (fault,) = [fault for fault in dataset.faults if fault.kind != "identity"]
    assert (fault.shard, fault.member) == (str(tmp_path / "x.zip"), "b/0.jpg")
    assert reason in fault.reason


@pytest.mark.parametrize("data", [b"", b"<html>" * 100, GOOD[:-1], GOOD[:-30], GOOD[: len(GOOD) // 2]])
def test_zip_without_a_valid_directory_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.zip: truncated or not a zip archive .*: download it again, or remove it$"):
        convert(WebfaceZipSource(tmp_path), tmp_path / "out")
    (tmp_path / "x.zip").unlink()
    with pytest.raises(DataError, match=r"no \.zip file in this folder"):
        convert(WebfaceZipSource(tmp_path), tmp_path / "out")


def test_zip_without_its_first_bytes_loses_the_first_member_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(GOOD[10:])
    dataset = convert(WebfaceZipSource(tmp_path / "x.zip"), tmp_path / "out")
    assert samples(dataset) == {"b/0": ("b", JPEG[1]), "c/0": ("c", JPEG[2])}
    assert left_out(dataset) == [("truncated", "a/0.jpg")]
