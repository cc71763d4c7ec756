"""`rayface check --deep` on one folder with every kind of fault: each is named.

A new kind of fault is a line in FILES (what lies in the folder) and one in NAMED (words of the line that names it).
"""

import gzip
import io
import json
import tarfile

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from rayface.cli.command_line import app

Members = list[tuple[str, bytes]]


def picture(seed: int, suffix: str = "jpg", side: int = 32) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.imencode(f".{suffix}", cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))[1].tobytes()


def turned(jpeg: bytes) -> bytes:
    """The JPEG with an EXIF orientation of 6."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


def tar(members: Members) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def sample(key: str, label: int = 69_000_000, suffix: str = "jpg") -> Members:
    return [(f"{key}.{suffix}", picture(label, suffix.lower())), (f"{key}.cls", b"%d" % label)]


READ = [  # nothing is lost of these
    *sample("name.0001"),
    *sample("name.0002", 69_000_001),
    *sample("upper", suffix="PNG"),
    *sample("web", suffix="webp"),
    ("text.jpg", picture(1)),
    ("text.txt", b"69000002"),
    ("json.jpg", picture(2)),
    ("json.json", b'{"label": 69000002}'),
    ("turned.jpg", turned(picture(3))),
    ("turned.cls", b"69000000"),
]
TWICE = sample("00000")  # every tar counts from 00000: the shard tells them apart
FILES = {
    "a.tar": tar(READ),
    "b.tar": tar(TWICE),
    "c.tar": tar(TWICE),
    "groups.tar": tar(
        [
            ("no.label.jpg", picture(3)),
            ("no_image.cls", b"69000000"),
            ("caption.jpg", picture(4)),
            ("caption.txt", b"a man with a hat"),
            ("empty.jpg", picture(4)),
            ("empty.json", b'{"age": 3}'),
            ("apple.heic", b"\0\0\0\x18ftypheic"),
            ("apple.cls", b"69000000"),
            ("plain", picture(5)),
            ("apart.jpg", picture(6)),
            ("between.md", b"x"),
            ("apart.cls", b"69000000"),
            ("damaged.png", picture(7, "png")[:-30]),
            ("damaged.cls", b"69000000"),
            ("large.jpg", picture(8, side=200)[:-300]),  # would be resized: no looser decoder then
            ("large.cls", b"69000000"),
        ]
    ),
    "packed.tar.gz": gzip.compress(tar(sample("x"))),
    "packed.TGZ": gzip.compress(tar(sample("x"))),
    "sub/folder/below.tar": tar(sample("x")),
    "disguised.tar": gzip.compress(tar(sample("x"))),
    "page.tar": b"<!DOCTYPE html>" * 100,
    "nothing.tar": b"",
}
# (in the line of the fault: its file, then words) for each fault
NAMED = [
    ("groups.tar", "no.label.jpg", "no label (.cls, .json, .txt) with this key"),
    ("groups.tar", "no_image.cls", "no image with this key"),
    ("groups.tar", "caption.txt", "not an integer"),
    ("groups.tar", "empty.json", 'no integer "label"'),
    ("groups.tar", "apple.heic", "HEIF image of a format or suffix that is not read"),
    ("groups.tar", "plain", "JPEG image without a label"),
    ("groups.tar", "apart.jpg", "no label (.cls, .json, .txt) with this key beside it"),
    ("groups.tar", "apart.cls", "must be neighbours"),
    ("groups.tar", "damaged.png", "PNG that cannot be decoded"),
    ("groups.tar", "large.jpg", "JPEG"),
    ("packed.tar.gz", "compressed tar", "rayface convert --from webdataset"),
    ("packed.TGZ", "compressed tar", "rayface convert --from webdataset"),
    ("sub/folder/below.tar", "sub-folder", "rayface convert --from webdataset"),
    ("disguised.tar", "not a tar but gzip"),
    ("page.tar", "no tar member"),
    ("nothing.tar", "the file is empty"),
    ("labels have holes", "69,000,003 classes, 3 of them with images", "rayface convert --from webdataset"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("set")
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    done = CliRunner().invoke(app, ["check", "--deep", "--json", str(folder)])
    assert done.exit_code == 1
    return {**json.loads(done.stdout), "folder": str(folder)}


@pytest.mark.parametrize("words", NAMED, ids=lambda words: f"{words[0]} {words[1]}")
def test_check_deep_names_every_fault_of_one_folder(report: dict, words: tuple[str, ...]) -> None:
    found = [line for line in report["fault_list"] if all(word in line for word in words)]
    assert len(found) == 1, report["fault_list"]


def test_check_deep_of_one_folder_reads_all_valid_samples(report: dict) -> None:
    assert len(report["fault_list"]) == len(NAMED)
    assert report["images"] == len(READ) // 2 + 2
    assert (report["identities"], report["samples_lost"]) == (3, 12)
    assert "SHARD/KEY" in report["keys"]
    assert all(line.startswith(report["folder"]) for line in report["fault_list"])
