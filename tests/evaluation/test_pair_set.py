"""Verification pairs: their images are found by name, and scored."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rayface.config import EvaluateConfig
from rayface.data.convert import convert
from rayface.data.decode import decode_images
from rayface.data.shards.tar import encode_member, end_of_archive
from rayface.data.sources.bin import BinSource
from rayface.data.writer import write_dataset
from rayface.evaluation import pair_set
from rayface.evaluation.pair_set import load_bin, load_pairs
from rayface.evaluation.pairs import BinProtocol, evaluate_pairs
from tests.data.scanned_tars import picture
from tests.data.shard_files import write_tar
from tests.data.sources.bin_files import bin_file

HEADER = "path_a,path_b,is_same,fold"


def jpeg(colour):
    return simplejpeg.encode_jpeg(np.full((32, 32, 3), colour, np.uint8), quality=95)


@pytest.fixture
def data(tmp_path):
    """Twelve flat grey images, two to an identity: `face_03` has the grey 30; the last one is no JPEG."""
    samples = [(f"face_{i:02}", i // 2, jpeg(10 * i) if i < 11 else b"no picture") for i in range(12)]
    folder = tmp_path / "data"
    write_dataset(
        folder, samples, name="greys", identities=[f"id{i}" for i in range(6)], image_size=(32, 32), shard_size=8000
    )
    return folder


@pytest.fixture
def csv(tmp_path):
    def write(*rows, header=HEADER):
        path = tmp_path / "greys_pairs.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


def test_load_pairs_decodes_only_the_images_that_a_pair_names(data, csv, monkeypatch):
    decoded = []
    decode = pair_set.decode_images
    monkeypatch.setattr(
        pair_set, "decode_images", lambda jpegs, size: decoded.append(len(jpegs)) or decode(jpegs, size)
    )
    path = csv("face_09.jpg,face_08.jpg,1,0", "face_08.jpg,face_01.jpg,0,0", "face_01.jpg,face_09.jpg,0,3")
    pairs = load_pairs(path, data, image_size=16)
    assert pairs.name == "greys_pairs"
    assert pairs.images.shape == (3, 16, 16, 3)
    assert pairs.images.dtype == np.uint8
    assert decoded == [3]  # only those that a pair names
    colours = pairs.images[:, 8, 8, 0].round(-1)
    assert [colours[i] for i in pairs.a] == [90, 80, 10]
    assert [colours[i] for i in pairs.b] == [80, 10, 90]
    assert pairs.is_same.tolist() == [True, False, False]
    assert pairs.fold.tolist() == [0, 0, 3]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("face_01.jpg,nobody.jpg,1,0", "nobody.jpg, not found in"),
        ("face_01.jpg,face_11.jpg,1,0", "face_11.jpg of .* cannot be decoded: not an image"),
    ],
)
def test_load_pairs_of_a_missing_or_unreadable_member_names_it(data, csv, row, words):
    path = csv(row, "face_01.jpg,face_02.jpg,0,1")
    with pytest.raises(ValueError, match=words) as caught:
        load_pairs(path, data, image_size=16)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"pairs {path} ")


def test_load_pairs_of_a_corrupt_member_names_shard_and_byte(data, csv):
    shard = sorted(data.glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    start = content.index(b"face_01.jpg")
    content[start + 148 : start + 156] = b"smashed!"  # the checksum of its header
    shard.write_bytes(content)
    path = csv("face_00.jpg,face_01.jpg,1,0", "face_00.jpg,face_02.jpg,0,1")
    with pytest.raises(ValueError, match=r"need face_01.jpg, which is corrupt: .*shard-000000.tar: at byte 2560"):
        load_pairs(path, data, image_size=16)


def test_load_pairs_of_names_in_several_shards_needs_their_shard(tmp_path, csv, monkeypatch):
    """Each tar counts from 00: a name with its shard gives that shard's image."""
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "bare"
    data.mkdir()
    for shard in range(2):
        members = [(f"{i:02}", i // 2, jpeg(100 * shard + 10 * i)) for i in range(4 + shard)]
        tar = b"".join(encode_member(f"{k}.jpg", data) + encode_member(f"{k}.cls", b"%d" % n) for k, n, data in members)
        (data / f"{shard}.tar").write_bytes(tar + end_of_archive(len(tar)))
    first = "0.tar/01.jpg,1.tar/01.jpg,0,0"
    several = r"name 01.jpg, which several shards of .* have: .* for example [01].tar/01.jpg"
    with pytest.raises(ValueError, match=several):
        load_pairs(csv(first, "0.tar/01.jpg,01.jpg,1,1"), data, image_size=16)
    with pytest.raises(ValueError, match=r"name 05.jpg, not found in"):
        load_pairs(csv(first, "0.tar/01.jpg,05.jpg,1,1"), data, image_size=16)
    pairs = load_pairs(csv(first, "04.jpg,0.tar/01.jpg,1,1"), data, image_size=16)
    colours = pairs.images[:, 8, 8, 0].round(-1)
    assert [colours[i] for i in [*pairs.a, *pairs.b]] == [10, 140, 110, 10]


def test_load_pairs_of_a_missing_dataset_names_it(csv, tmp_path):
    path = csv("face_01.jpg,face_02.jpg,1,0", "face_01.jpg,face_03.jpg,0,1")
    with pytest.raises(ValueError, match="missing_data"):
        load_pairs(path, tmp_path / "missing_data", image_size=16)


@pytest.mark.parametrize("key", ["Ann_{:04d}", "Ann/Ann_{:04d}", "Ann_Ann_{:04d}"])
def test_load_pairs_of_lfws_names_finds_every_spelling(tmp_path, key):
    samples = [(key.format(i), 0, jpeg(20 * i)) for i in range(1, 5)]
    write_dataset(tmp_path / "set", samples, name="set", identities=["Ann"], image_size=(32, 32))
    path = tmp_path / "pairs.txt"
    path.write_text("2\t1\nAnn\t1\t3\nAnn\t1\tAnn\t4\nAnn\t2\t3\nAnn\t4\tAnn\t2\n")
    pairs = load_pairs(path, tmp_path / "set", image_size=16)
    colours = pairs.images[:, 8, 8, 0].round(-1)
    assert [colours[i] for i in pairs.a] == [20, 20, 40, 80]
    assert [colours[i] for i in pairs.b] == [60, 80, 60, 40]
    path.write_text("2\t1\nAnn\t1\t9\nAnn\t1\tAnn\t4\nAnn\t2\t3\nAnn\t4\tAnn\t2\n")
    with pytest.raises(ValueError, match=r"name \S*Ann_0009.jpg, not found in"):
        load_pairs(path, tmp_path / "set", image_size=16)


def test_load_pairs_of_real_images_from_csv_and_lfws_file_is_equal(faces):
    pairs = load_pairs(faces / "lfw_pairs" / "lfw_pairs.csv", faces / "lfw_pairs", image_size=32)
    assert pairs.images.shape == (7701, 32, 32, 3)
    assert np.bincount(pairs.fold).tolist() == [600] * 10
    assert pairs.is_same.sum() == 3000
    theirs = load_pairs(faces / "lfw_pairs" / "pairs.txt", faces / "lfw_pairs", image_size=32)
    for name in ("images", "a", "b", "is_same", "fold"):
        assert np.array_equal(getattr(theirs, name), getattr(pairs, name))
    # grey pixels are no good face recogniser, but no coin toss
    grey = pairs.images[:, 4:28, 4:28].mean(3).reshape(len(pairs.images), -1)
    grey = grey - grey.mean(1, keepdims=True)
    grey /= np.linalg.norm(grey, axis=1, keepdims=True)
    assert 0.55 < evaluate_pairs(grey.astype(np.float32), pairs).accuracy_mean < 0.75


def test_load_pairs_with_dots_in_names_and_any_format_finds_members(tmp_path: Path) -> None:
    files = [m for i in range(2) for m in ((f"k.{i}.png", picture(i, "png")), (f"k.{i}.txt", b"%d" % i))]
    write_tar(tmp_path / "set" / "a.tar", files)
    (tmp_path / "pairs.csv").write_text("path_a,path_b,is_same,fold\nk.0.png,k.1.png,0,0\nk.1.png,k.1.png,1,1\n")
    pairs = load_pairs(tmp_path / "pairs.csv", tmp_path / "set", image_size=32)
    wanted, _ = decode_images([picture(i, "png") for i in range(2)], 32)
    assert np.array_equal(pairs.images[pairs.a], wanted[[0, 1]])
    assert np.array_equal(pairs.images[pairs.b], wanted[[1, 1]])


def test_load_bin_gives_the_same_pairs_as_the_dataset_that_it_is_converted_to(tmp_path: Path) -> None:
    jpegs = [jpeg(10 * number) for number in range(8)]
    order = np.random.default_rng(0).integers(0, 8, 40)
    src, is_same = tmp_path / "lfw.bin", [n % 3 == 0 for n in range(20)]
    src.write_bytes(bin_file([jpegs[n] for n in order], is_same))
    source = BinSource(src)
    convert(source, tmp_path / "out")
    settings = BinProtocol.settings_of(EvaluateConfig(bin=str(src)))
    (protocol,) = BinProtocol.open_each("bin", settings, image_size=32).values()
    ours, theirs = protocol.pairs, load_pairs(tmp_path / "out" / "pairs.csv", tmp_path / "out", image_size=32)
    assert len(ours.images) == len(theirs.images) == len(set(order))
    for name in ("is_same", "fold"):
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()
    for side in ("a", "b"):
        assert (ours.images[getattr(ours, side)] == theirs.images[getattr(theirs, side)]).all()


def test_load_bin_with_an_unreadable_image_names_it(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bin_file([jpeg(10), b"no picture"], [True]))
    with pytest.raises(ValueError, match=r"x\.bin: image 1 cannot be decoded: not an image"):
        load_bin(tmp_path / "x.bin", image_size=32)
