"""Tars of every shape become one dataset: compressed, in sub-folders, with equal keys and holes in their labels."""

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import webdataset
from pyarrow import fs as pafs
from typer.testing import CliRunner

from rayface.cli.command_line import app
from rayface.data import listing
from rayface.data.check import check
from rayface.data.convert import ConvertSettings, convert
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources import webdataset as webdataset_source
from rayface.data.sources.webdataset import WebDatasetSource
from rayface.data.writer import write_dataset
from rayface.storage import DataError, paths, write_bytes
from tests.conftest import ObjectStore
from tests.data.scanned_tars import picture

Samples = dict[str, tuple[int, bytes]]


def convert_webdataset(src: Path | str, out: Path | str, **settings: Any) -> Dataset:
    return convert(WebDatasetSource(src), out, ConvertSettings(**settings))


def jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


JPEG = [jpeg(i) for i in range(8)]


def tar_bytes(files: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def pairs(keys: Sequence[str], labels: Sequence[int], images: Sequence[bytes]) -> bytes:
    files = []
    for key, label, image in zip(keys, labels, images, strict=True):
        files += [(f"{key}.jpg", image), (f"{key}.cls", b"%d" % label)]
    return tar_bytes(files)


def found(folder: Path) -> Samples:
    dataset = open_dataset(folder, max_corrupt_fraction=0)
    samples = read_samples(dataset.shard_paths(), dataset.index)
    return {s.key: (s.label, s.jpeg) for s in samples if isinstance(s, Sample)}


def test_webdataset_with_a_folder_that_cannot_be_listed_names_it(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mixed / "lost+found").mkdir()
    entries = listing.list_entries

    def refused(folder: str) -> Any:
        if folder.endswith(("more.d", "lost+found")):
            raise DataError(f"{folder}: cannot be listed")
        return entries(folder)

    monkeypatch.setattr(listing, "list_entries", refused)
    dataset = convert_webdataset(mixed, tmp_path / "out")
    assert [(fault.kind, fault.member) for fault in dataset.faults] == [("folder", "more.d")]
    with pytest.raises(DataError, match="1 of 5 images cannot be read"):
        convert_webdataset(mixed, tmp_path / "strict", max_corrupt_fraction=0)


def test_webdataset_with_a_latin_1_name_gets_a_safe_key(tmp_path: Path) -> None:
    data = pairs([b"\xc9milie/1".decode("utf-8", "surrogateescape"), "ann/1"], [0, 1], JPEG[:2])
    (tmp_path / "a.tar").write_bytes(data)
    dataset = convert_webdataset(tmp_path / "a.tar", tmp_path / "out")
    assert (sorted(dataset.keys()), dataset.faults) == (["ann/1", "xc9milie/1"], ())


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A plain tar, a compressed one and one in a sub-folder, with equal keys and labels near 69 million."""
    src = tmp_path / "src"
    (src / "more.d").mkdir(parents=True)
    (src / "a.tar").write_bytes(pairs(["000.a", "001"], [69_000_005, 69_000_001], JPEG[:2]))
    (src / "b.tar.gz").write_bytes(gzip.compress(pairs(["000.a", "001"], [69_000_005, 69_000_003], JPEG[2:4])))
    (src / "more.d" / "c.tgz").write_bytes(gzip.compress(pairs(["000.a", "001"], [7, 69_000_003], JPEG[4:6])))
    return src


@pytest.mark.parametrize("layout", ["shuffled", "by_identity"])
def test_webdataset_tars_of_every_shape_become_one_label_space(tmp_path: Path, mixed: Path, layout: str) -> None:
    with pytest.raises(DataError, match="rayface convert --from webdataset"):
        open_dataset(mixed)
    dataset = convert_webdataset(mixed, tmp_path / "out", layout=layout)
    assert found(tmp_path / "out") == {
        "a/000_a": (3, JPEG[0]),
        "a/001": (1, JPEG[1]),
        "b/000_a": (3, JPEG[2]),
        "b/001": (2, JPEG[3]),
        "more_d/c/000_a": (0, JPEG[4]),
        "more_d/c/001": (2, JPEG[5]),
    }
    assert dataset.identities == ("7", "69000001", "69000003", "69000005")
    assert (dataset.num_classes, dataset.about.layout, dataset.faults) == (4, layout, ())
    assert dataset.about.image_size == (32, 32)
    assert check(tmp_path / "out", deep=True).ok
    assert (dataset.index.label[1:] >= dataset.index.label[:-1]).all() == (layout == "by_identity")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    read = [
        sample["__key__"]
        for shard in dataset.shards
        for sample in webdataset.WebDataset(shard.path, shardshuffle=False)
    ]
    assert sorted(read) == sorted(found(tmp_path / "out"))


def test_webdataset_tar_that_unpacks_to_far_more_is_refused_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset_source, "_MAX_MORE", 1 << 20)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(DataError, match=r"b\.tar\.gz: unpacks to more than 100 times its size"):
        webdataset_source._unpack(str(tmp_path / "b.tar.gz"), "gzip", str(tmp_path / "copy.tar"))
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar.gz"]


def test_webdataset_compressed_tar_that_disappeared_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.tar\.gz: cannot be unpacked into .*: replace the file or remove it"):
        webdataset_source._unpack(str(tmp_path / "b.tar.gz"), "gzip", str(tmp_path / "copy.tar"))


def test_webdataset_single_compressed_tar_keeps_its_keys(tmp_path: Path) -> None:
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(pairs(["x/000", "x/001"], [4, 4], JPEG[:2])))
    convert_webdataset(tmp_path / "b.tar.gz", tmp_path / "out")
    assert found(tmp_path / "out") == {"x/000": (0, JPEG[0]), "x/001": (0, JPEG[1])}


def test_webdataset_same_seed_gives_the_same_bytes(tmp_path: Path, mixed: Path) -> None:
    digests = [convert_webdataset(mixed, tmp_path / f"out{i}", seed=seed).digest for i, seed in enumerate((3, 3, 4))]
    assert digests[0] == digests[1] != digests[2]


def test_webdataset_with_names_keeps_them_and_drops_empty_classes(tmp_path: Path) -> None:
    write_dataset(
        tmp_path / "src",
        [(f"k{i}", 2 * i, JPEG[i]) for i in range(3)],
        name="src",
        identities=["ann", "bob", "cy", "di", "ed", "flo"],
        image_size=None,
    )
    dataset = convert_webdataset(tmp_path / "src", tmp_path / "out")
    assert dataset.identities == ("ann", "cy", "ed")
    assert found(tmp_path / "out") == {f"k{i}": (i, JPEG[i]) for i in range(3)}
    assert pq.read_table(tmp_path / "out" / "identities.parquet")["num_images"].to_pylist() == [1, 1, 1]


def test_webdataset_of_a_dataset_names_shards_that_are_missing(tmp_path: Path) -> None:
    samples, root = [(f"k{i}", 0, JPEG[i]) for i in range(6)], tmp_path / "src"
    write_dataset(root, samples, name="src", identities=["ann"], image_size=None, shard_size=1)
    packed, moved, gone = (root / f"shard-00000{number}.tar" for number in (1, 2, 4))
    packed.with_suffix(".tar.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    (root / "more").mkdir()
    moved.rename(root / "more" / moved.name)
    gone.unlink()
    dataset = convert_webdataset(root, tmp_path / "out")
    assert [str(fault) for fault in dataset.faults] == [f"{gone}: the file is missing, dataset.json lists it"]
    assert (dataset.num_images, dataset.faults[0].kind, dataset.faults[0].num_lost) == (5, "not read", 1)
    (root / "dataset.json").write_text("{}")  # of another program
    assert convert_webdataset(root, tmp_path / "out2").faults == ()


def test_webdataset_unreadable_samples_are_left_out_and_named(tmp_path: Path) -> None:
    damaged = JPEG[1][:-400]
    (tmp_path / "src").mkdir()
    files = [("a.jpg", JPEG[0]), ("a.cls", b"5"), ("b.jpg", damaged), ("b.cls", b"6"), ("c.jpg", JPEG[2])]
    (tmp_path / "src" / "a.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
    dataset = convert_webdataset(tmp_path / "src", tmp_path / "out")
    assert found(tmp_path / "out") == {"a": (0, JPEG[0])}
    source = str(tmp_path / "src" / "a.tar.gz")
    named = [(fault.shard, fault.member, fault.kind) for fault in dataset.faults]
    assert named == [(source, "b.jpg", "unreadable"), (source, "c.jpg", "missing member")]


def test_webdataset_files_that_are_no_part_of_a_sample_are_named_and_counted(tmp_path: Path) -> None:
    files = [("README.md", b"x"), (".DS_Store", b"x"), ("a.jpg", JPEG[0]), ("a.cls", b"5"), ("a.mask", b"x")]
    files += [("more/meta.json", b"{}"), ("more/._a.jpg", b"x"), ("b.mp4", b"x")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    dataset = convert_webdataset(tmp_path / "a.tar", tmp_path / "out")
    assert [(fault.kind, fault.member, fault.num_lost) for fault in dataset.faults] == [
        ("hidden", ".DS_Store", 1),
        ("other file", "README.md", 1),
        ("hidden", None, 1),
        ("other file", None, 2),
    ]
    assert check(tmp_path).ok  # a dataset may have them


def test_webdataset_keys_that_are_no_paths_become_paths(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(pairs(["../../a", "a", "b.c", "b_c"], [0, 1, 2, 3], JPEG[:4]))
    convert_webdataset(tmp_path / "a.tar", tmp_path / "out")
    assert sorted(found(tmp_path / "out").values()) == [(i, JPEG[i]) for i in range(4)]


@pytest.mark.parametrize("layout", ["", "random"])
def test_webdataset_unknown_layout_is_refused(tmp_path: Path, mixed: Path, layout: str) -> None:
    with pytest.raises(ValueError, match="layout"):
        convert_webdataset(mixed, tmp_path / "out", layout=layout)


def test_webdataset_unusable_source_is_one_line_and_leaves_nothing(tmp_path: Path, mixed: Path) -> None:
    def refused(src: Path, words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            convert_webdataset(src, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused(tmp_path / "none", "no such folder or tar")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no tars")
    (tmp_path / "empty" / "a.tar").write_bytes(tar_bytes([("notes.txt", b"none")]))
    refused(tmp_path / "empty", "no images to convert: webdataset needs tars with an image and its label")
    whole = (mixed / "b.tar.gz").read_bytes()
    (mixed / "b.tar.gz").write_bytes(whole[: len(whole) // 2])
    refused(mixed, r"b\.tar\.gz: cannot be unpacked")
    (mixed / "b.tar.gz").write_bytes(gzip.compress(b"<html>" * 400))
    refused(mixed, r"b\.tar\.gz.*no tar member")
    (mixed / "b.tar.gz").rename(mixed / "b.tar.xz")
    refused(mixed, r"b\.tar\.xz: \.xz is not read: unpack it")
    (mixed / "b.tar.xz").rename(mixed / "a.tar.gz")
    refused(mixed, r"a\.tar and a\.tar\.gz are probably the same tar")
    with pytest.raises(DataError, match="not empty"):
        convert_webdataset(tmp_path / "src", tmp_path)


def test_webdataset_in_an_object_store_is_read_like_a_folder(
    tmp_path: Path, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = pafs.LocalFileSystem()
    monkeypatch.setattr(paths, "_filesystem", lambda uri: (local, str(tmp_path / uri.removeprefix("mem://"))))
    convert_webdataset("mem://src", "mem://bucket/out")
    assert len(found(tmp_path / "bucket" / "out")) == 6


def test_convert_verb_from_webdataset_counts_images_and_identities(tmp_path: Path, mixed: Path) -> None:
    done = CliRunner().invoke(app, ["convert", str(mixed), str(tmp_path / "out"), "--from", "webdataset", "--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert (told["images"], told["identities"], told["left_out"]) == (6, 4, {})


def test_webdataset_read_of_a_changed_copy_names_the_compressed_tar(tmp_path: Path) -> None:
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress(pairs(["000", "001"], [4, 4], JPEG[:2])))
    source = WebDatasetSource(packed)
    source.prepare(str(tmp_path / "near"))
    listed = source.list_images(0).images
    (copy,) = (tmp_path / "near").iterdir()
    copy.write_bytes(bytes(copy.stat().st_size))
    faults = list(source.read(0, listed))
    assert [fault.shard for fault in faults] == [str(packed)] * 2


def test_webdataset_of_a_store_unpacks_where_tasks_of_all_nodes_read(object_store: ObjectStore) -> None:
    write_bytes(object_store.uri("src/a.tar"), pairs(["000", "001"], [4, 4], JPEG[:2]))
    write_bytes(object_store.uri("src/b.tar.gz"), gzip.compress(pairs(["002"], [5], JPEG[2:3])))
    before = set(object_store.files())
    driver = WebDatasetSource(object_store.uri("src"))
    driver.prepare(object_store.uri("out/.convert/source-000"))
    one, other = (pickle.loads(pickle.dumps(driver)) for _ in range(2))
    listed = [one.list_images(part).images for part in range(2)]
    assert set(object_store.files()) - before == {"out/.convert/source-000/1.tar"}
    read = [image.data for part, images in enumerate(listed) for image in other.read(part, images)]
    assert read == JPEG[:3]


def test_webdataset_conversion_that_was_killed_leaves_nothing_beside_its_output(tmp_path: Path, mixed: Path) -> None:
    def killed(work: Any, parts: Any, name: str, **_: Any) -> Any:
        if name == "read images":
            raise KeyboardInterrupt
        return map(work, parts)

    with pytest.raises(KeyboardInterrupt):
        convert(WebDatasetSource(mixed), tmp_path / "out", map_parts=killed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]
    assert sorted(path.name for path in tmp_path.rglob("source-000/*")) == ["1.tar", "2.tar"]
    convert_webdataset(mixed, tmp_path / "out")
    assert len(found(tmp_path / "out")) == 6
    assert not list(tmp_path.rglob("source-000"))


def test_webdataset_of_other_formats_and_labels_keeps_its_bytes(tmp_path: Path) -> None:
    images = {suffix: picture(number, suffix) for number, suffix in enumerate(("png", "webp", "jpg", "PNG"))}
    labels = [("json", b'{"label": 7, "age": 3}'), ("txt", b"7\n"), ("json", b'{"label": 2}'), ("cls", b"9")]
    files = []
    for number, ((suffix, data), (kind, text)) in enumerate(zip(images.items(), labels, strict=True)):
        files += [(f"{number}.{suffix}", data), (f"{number}.{kind}", text)]
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    convert_webdataset(tmp_path / "a.tar", tmp_path / "out")
    wanted = dict(enumerate(zip([1, 1, 0, 2], images.values(), strict=True)))
    assert found(tmp_path / "out") == {str(number): value for number, value in wanted.items()}
