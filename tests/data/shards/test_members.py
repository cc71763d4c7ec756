"""Which members are a sample: names, image suffixes and kinds of labels."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from rayface.data.check import check
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.shards.members import encode_sample, parse_name
from rayface.data.shards.samples import Fault
from rayface.data.shards.sequential import scan_shard
from tests.data.scanned_tars import JPEG, picture, scanned
from tests.data.shard_files import write_tar


@pytest.mark.parametrize("suffix", ["JPG", "Jpeg", "jfif", "png", "PNG", "webp", "bmp", "tif"])
def test_image_formats_in_any_case_are_read_and_decoded(tmp_path: Path, suffix: str) -> None:
    kind = suffix.lower() if suffix.lower() in ("png", "webp", "bmp", "tif") else "jpg"
    files = [m for i in range(3) for m in ((f"k{i}.{suffix}", picture(i, kind)), (f"k{i}.CLS", b"%d" % i))]
    samples, faults = scanned(tmp_path, files)
    assert [key for key, _, _ in samples] == ["k0", "k1", "k2"]
    assert not faults
    images, bad = decode_images([image for _, _, image in samples], 32)
    assert not bad
    wanted = cv2.cvtColor(cv2.imdecode(np.frombuffer(picture(1, "png"), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(images[1].astype(int) - wanted).mean() < 5
    assert check(tmp_path, deep=True).ok
    assert open_dataset(tmp_path).about.image_size == (32, 32)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [("cls", b"7\n"), ("txt", b" 7 \r\n"), ("txt", b"\xef\xbb\xbf7"), ("json", b'{"label": 7, "age": 3}')],
)
def test_labels_of_every_suffix_are_read(tmp_path: Path, suffix: str, text: bytes) -> None:
    samples, faults = scanned(tmp_path, [("k.1.jpg", JPEG[0]), (f"k.1.{suffix}", text)])
    assert (samples, faults) == ([("k.1", 7, JPEG[0])], [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"7", 'no integer "label"'),
        (b'{"age": 3}', 'no integer "label"'),
        (b'{"label": true}', 'no integer "label"'),
        (b'{"label": 3.0}', 'no integer "label"'),
        (b'{"label": -3}', "negative"),
        (b'{"label": 2147483648}', "out of range"),
    ],
)
def test_json_without_a_label_is_a_lost_sample(tmp_path: Path, text: bytes, reason: str) -> None:
    write_tar(tmp_path / "a.tar", [("k.jpg", JPEG[0]), ("k.json", text)])
    (fault,) = scan_shard(tmp_path / "a.tar")
    assert isinstance(fault, Fault)
    assert (fault.member, fault.kind, fault.num_lost) == ("k.json", "label", 1)
    assert reason in fault.reason


def test_label_of_cls_precedes_others_and_captions_are_no_labels(tmp_path: Path) -> None:
    files = [("a.cls", b"1"), ("a.jpg", JPEG[0]), ("a.json", b'{"label": 9}'), ("a.txt", b"8")]
    files += [("b.jpg", JPEG[1]), ("b.json", b'{"age": 4}'), ("b.txt", b"2")]
    files += [("c.jpg", JPEG[2]), ("c.txt", b"a man with a hat")]
    samples, faults = scanned(tmp_path, files)
    assert [(key, label) for key, label, _ in samples] == [("a", 1), ("b", 2)]
    assert faults == [("c.txt", "label", 1)]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("k.jpg", ("k", "k", "jpg")),
        ("d.e/k.1.JPG", ("d.e/k", "d.e/k.1", "jpg")),
        ("k.seg.npy", ("k", "k", "")),
        ("k", ("k", "k", "")),
        ("d/.k.jpg", ("", "", "")),
    ],
)
def test_parse_name_splits_group_key_and_suffix(name: str, parts: tuple[str, str, str]) -> None:
    assert parse_name(name) == parts


def test_encode_sample_names_the_image_by_its_content() -> None:
    assert encode_sample("k", 1, JPEG[0])[:6] == b"k.jpg\0"
    assert encode_sample("k", 1, picture(0, "webp"))[:7] == b"k.webp\0"
    assert encode_sample("k", 1, b"anything")[:6] == b"k.jpg\0"
