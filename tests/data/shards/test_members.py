"""Which members are a sample: names with dots, image formats, kinds of labels; what is neither sample nor no sample."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from rayface.data.check import check
from rayface.data.dataset import open_dataset
from rayface.data.decode import decode_images
from rayface.data.selection import select, write_selected_shard
from rayface.data.shards.members import encode_sample, parse_name
from rayface.data.shards.random_access import SampleReader, read_samples
from rayface.data.shards.samples import Fault, Sample
from rayface.data.shards.sequential import scan_shard
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.windows import rank_windows, read_windows
from rayface.embedding.shard_embedder import read_images
from rayface.evaluation.pairs import load_pairs

Files = list[tuple[str, bytes]]


def picture(seed: int, suffix: str) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return cv2.imencode(f".{suffix}", cv2.resize(coarse, (32, 32), interpolation=cv2.INTER_CUBIC))[1].tobytes()


JPEG = [picture(i, "jpg") for i in range(6)]


def write_tar(path: Path, files: Files) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def scanned(path: Path, files: Files) -> tuple[list[tuple[str, int, bytes]], list[tuple[str | None, str, int]]]:
    """Return (key, label, image) of the samples of a tar with these files and (member, kind, num_lost) of its faults.

    Asserts that an open dataset and reading by index find the same.
    """
    write_tar(path / "a.tar", files)
    entries = list(scan_shard(path / "a.tar"))
    samples = [entry for entry in entries if isinstance(entry, Sample)]
    faults = [(f.member, f.kind, f.num_lost) for f in entries if isinstance(f, Fault)]
    quick = list(scan_shard(path / "a.tar", read_jpeg=False))
    assert [entry for entry in quick if isinstance(entry, Fault)] == [e for e in entries if isinstance(e, Fault)]
    if samples:
        dataset = open_dataset(path, max_corrupt_fraction=1)
        assert [(f.member, f.kind, f.num_lost) for f in dataset.faults] == faults
        assert read_samples(dataset.shard_paths(), dataset.index) == samples
    return [(s.key, s.label, s.jpeg) for s in samples], faults


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


def test_check_deep_of_a_corrupt_png_names_it(tmp_path: Path) -> None:
    bad = bytearray(picture(1, "png"))
    bad[len(bad) // 2] ^= 1
    files = [("a.png", picture(0, "png")), ("a.cls", b"0"), ("b.c.png", bytes(bad)), ("b.c.cls", b"1")]
    write_tar(tmp_path / "a.tar", files)
    (fault,) = check(tmp_path, deep=True).faults
    assert (fault.member, fault.num_lost) == ("b.c.png", 1)


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
        ("c.cls", "missing member", 1),
        ("d.jp2", "missing member", 1),
        ("e", "missing member", 1),
        ("f.jpg", "missing member", 1),
        ("g.txt", "missing member", 1),
        ("a.jpg", "missing member", 1),
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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_write_selected_shard_keeps_format_and_key(tmp_path: Path, suffix: str) -> None:
    files = [m for i in range(3) for m in ((f"k.{i}.{suffix}", picture(i, suffix)), (f"k.{i}.json", b'{"label": 0}'))]
    write_tar(tmp_path / "in" / "a.tar", files)
    dataset = open_dataset(tmp_path / "in")
    chosen = select(dataset, np.array([2, 0]))
    samples = dataset.index.select(chosen.rows)
    (tmp_path / "out").mkdir()
    write_selected_shard(str(tmp_path / "out"), dataset.shard_paths(), samples, chosen.labels, 0, "")
    (path,) = (tmp_path / "out").iterdir()
    found = [entry for entry in scan_shard(path) if isinstance(entry, Sample)]
    assert [(s.key, s.label, s.jpeg) for s in found] == [(f"k.{i}", 0, picture(i, suffix)) for i in (0, 2)]
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"k.{i}.{s}" for i in (0, 2) for s in (suffix, "cls")]


def test_encode_sample_names_the_image_by_its_content() -> None:
    assert encode_sample("k", 1, JPEG[0])[:6] == b"k.jpg\0"
    assert encode_sample("k", 1, picture(0, "webp"))[:7] == b"k.webp\0"
    assert encode_sample("k", 1, b"anything")[:6] == b"k.jpg\0"


def test_pairs_with_dots_and_any_format_find_their_members(tmp_path: Path) -> None:
    files = [m for i in range(2) for m in ((f"k.{i}.png", picture(i, "png")), (f"k.{i}.txt", b"%d" % i))]
    write_tar(tmp_path / "set" / "a.tar", files)
    (tmp_path / "pairs.csv").write_text("path_a,path_b,is_same,fold\nk.0.png,k.1.png,0,0\nk.1.png,k.1.png,1,1\n")
    pairs = load_pairs(tmp_path / "pairs.csv", tmp_path / "set", image_size=32)
    wanted, _ = decode_images([picture(i, "png") for i in range(2)], 32)
    assert np.array_equal(pairs.images[pairs.a], wanted[[0, 1]])
    assert np.array_equal(pairs.images[pairs.b], wanted[[1, 1]])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_stream_and_embed_decode_every_format_and_name_corrupt_images(tmp_path: Path, suffix: str) -> None:
    files = []
    for i in range(8):
        data = picture(i, suffix)
        files += [(f"k.{i}.{suffix}", data[:-20] if i == 5 else data), (f"k.{i}.json", b'{"label": %d}' % i)]
    write_tar(tmp_path / "a.tar", files)
    dataset = open_dataset(tmp_path)
    wanted, _ = decode_images([picture(i, suffix) for i in range(8)], 32)
    (chunk,) = read_images(dataset.shards[0].path, dataset.index, 32, 1)
    assert chunk.keys == [f"k.{i}" for i in range(8) if i != 5]
    assert np.array_equal(chunk.images, np.delete(wanted, 5, 0))
    order = SampleOrder(num_samples=8, batch_size=8, chunk_images=1, window_images=8)
    with SampleReader(dataset.shard_paths()) as reader:
        (block,) = read_windows(reader, dataset.index, order, [0], 32, [[0]])
    (part,) = rank_windows(block, order, 0, 1, 32)
    assert np.array_equal(part.images[0], wanted[part.labels[0]])
    for member in (chunk.faults[0].member, part.faults[0].member):
        assert member == f"k.5.{suffix}"
