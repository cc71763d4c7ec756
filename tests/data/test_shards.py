"""Reading: tars of every make, each kind of damage at the byte level, datasets opened alone and joined."""

import io
import json
import pickle
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from pyarrow import fs as pafs

from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, Sample, SampleIndex
from rayface.data.shards.sequential import scan_shard
from rayface.data.writer import write_dataset
from rayface.storage import DataError, paths

JPEG = {f"k{i}": b"\xff\xd8" + bytes([i]) * (700 + 300 * i) for i in range(5)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RAYFACE_CACHE", str(folder))
    return folder


def members() -> list[tuple[str, bytes]]:
    return [m for i, (key, jpeg) in enumerate(JPEG.items()) for m in ((f"{key}.jpg", jpeg), (f"{key}.cls", b"%d" % i))]


def write_tar(path: Path, files: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> dict[str, int]:
    """Write a tar with tarfile; return the offset of each member's first header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = {}
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            offsets[name] = tar.offset
            tar.addfile(info, io.BytesIO(data))
    return offsets


def patch(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def good(entries: list[Sample | Fault]) -> list[str]:
    return [entry.key for entry in entries if isinstance(entry, Sample)]


def bad(entries: list[Sample | Fault]) -> list[Fault]:
    return [entry for entry in entries if isinstance(entry, Fault)]


def only_fault(path: Path, member: str | None, offset: int, *words: str) -> list[str]:
    """Assert that a scan finds exactly one fault, at that member and byte; return the keys of the good samples."""
    entries = list(scan_shard(path))
    (fault,) = bad(entries)
    assert (fault.shard, fault.member, fault.offset) == (str(path), member, offset), str(fault)
    for word in words:
        assert word in fault.reason
    assert str(fault) == f"{path}: {member + ' ' if member else ''}at byte {offset}: {fault.reason}"
    quick = list(scan_shard(path, read_jpeg=False))
    assert bad(quick) == bad(entries)
    assert good(quick) == good(entries)
    return good(entries)


# -- tars of every make


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("stem", ["k", "deep/folder/k", "n" * 150, "é" * 80])
def test_tarfile_in_every_format(tmp_path: Path, format: int, stem: str) -> None:
    if len(stem.encode()) > 100 and format == tarfile.USTAR_FORMAT:
        stem = "d" * 90 + "/" + "n" * 80  # goes into the ustar prefix field
    files = [(f"{stem}{i}.{s}", data) for i in range(3) for s, data in (("jpg", b"J" * 513), ("cls", b"%d" % i))]
    offsets = write_tar(tmp_path / "a.tar", files, format)
    samples = list(scan_shard(tmp_path / "a.tar"))
    assert [(s.key, s.label, s.jpeg, s.offset) for s in samples] == [
        (f"{stem}{i}", i, b"J" * 513, offsets[f"{stem}{i}.jpg"]) for i in range(3)
    ]
    assert samples[0].offset + samples[0].num_bytes == samples[1].offset


def test_gnu_tar_with_folders(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name, data in members():
        (tmp_path / "in" / "sub" / name).write_bytes(data)
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "--sort=name", "-C", tmp_path / "in", "."], check=True)
    samples = list(scan_shard(tmp_path / "a.tar"))
    assert [(s.key, s.label, s.jpeg) for s in samples] == [
        (f"./sub/{key}", i, jpeg) for i, (key, jpeg) in enumerate(JPEG.items())
    ]


def test_webdataset_writer_puts_cls_first(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i, (key, jpeg) in enumerate(JPEG.items()):
            writer.write({"__key__": key, "jpg": jpeg, "cls": i, "json": {"age": 3}})
    samples = list(scan_shard(tmp_path / "a.tar"))
    assert [(s.key, s.label, s.jpeg) for s in samples] == [(k, i, j) for i, (k, j) in enumerate(JPEG.items())]
    dataset = open_dataset(tmp_path)
    assert read_samples([s.path for s in dataset.shards], dataset.index) == samples


def test_base_256_size_and_old_style_header(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members())
    header = bytearray((tmp_path / "a.tar").read_bytes()[:512])
    header[124:136] = b"\x80" + len(JPEG["k0"]).to_bytes(11, "big")
    header[156:157] = b"\0"
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    patch(tmp_path / "a.tar", 0, bytes(header))
    assert good(list(scan_shard(tmp_path / "a.tar"))) == list(JPEG)


def test_members_that_are_no_samples_are_ignored(tmp_path: Path) -> None:
    extra = [("README.md", b"x"), (".hidden.jpg", b"x"), ("k9.json", b"{}"), ("noext", b"x")]
    write_tar(tmp_path / "a.tar", extra[:2] + members() + extra[2:])
    entries = list(scan_shard(tmp_path / "a.tar"))
    assert good(entries) == list(JPEG)
    assert not bad(entries)


def test_suffixes_are_those_of_webdataset(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.thumb.jpg", b"no"), ("a.JPEG", b"yes"), ("a.cls", b" 7\n")])
    (sample,) = scan_shard(tmp_path / "a.tar")
    assert (sample.key, sample.label, sample.jpeg) == ("a", 7, b"yes")


# -- damage


@pytest.mark.parametrize("window", [64, 1 << 22])
def test_smashed_jpg_header_loses_one_sample(tmp_path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayface.data.shards.sequential._SEQUENTIAL_WINDOW", window)
    offsets = write_tar(tmp_path / "a.tar", members())
    patch(tmp_path / "a.tar", offsets["k2.jpg"] + 150, b"\xff\xff")
    lost = offsets["k2.cls"] - offsets["k2.jpg"]
    keys = only_fault(tmp_path / "a.tar", "k2.jpg", offsets["k2.jpg"], "smashed tar header", f"{lost} bytes skipped")
    assert keys == ["k0", "k1", "k3", "k4"]


def test_smashed_cls_header_and_flipped_bit(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    patch(tmp_path / "a.tar", offsets["k2.cls"], b"x")  # only the name: the checksum tells
    assert only_fault(tmp_path / "a.tar", "k2.cls", offsets["k2.cls"], "checksum") == ["k0", "k1", "k3", "k4"]


def test_first_header_smashed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members())
    patch(tmp_path / "a.tar", 0, b"\xaa" * 512)
    assert only_fault(tmp_path / "a.tar", "k0.jpg", 0, "smashed") == ["k1", "k2", "k3", "k4"]


def test_damage_across_two_samples_names_both(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    start = offsets["k1.cls"]
    patch(tmp_path / "a.tar", start, b"\x55" * (offsets["k2.jpg"] + 512 - start))
    entries = list(scan_shard(tmp_path / "a.tar"))
    assert good(entries) == ["k0", "k3", "k4"]
    assert [(f.member, f.offset) for f in bad(entries)] == [("k1.cls", start), ("k2.jpg", start)]


def test_a_hole_of_zeros_is_not_the_end(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    start = offsets["k1.jpg"]
    patch(tmp_path / "a.tar", start, bytes(1024))
    assert only_fault(tmp_path / "a.tar", "k1.jpg", start, "zeros") == ["k0", "k2", "k3", "k4"]


def test_lost_bytes_shift_the_rest_off_the_512_grid(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    data = (tmp_path / "a.tar").read_bytes()
    cut = offsets["k1.jpg"] + 600
    (tmp_path / "a.tar").write_bytes(data[:cut] + data[cut + 100 :])
    entries = list(scan_shard(tmp_path / "a.tar"))
    assert good(entries) == ["k0", "k2", "k3", "k4"]
    (fault,) = bad(entries)
    assert fault.member == "k1.cls"


def test_concatenated_archives_are_read_to_the_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members())
    write_tar(tmp_path / "b.tar", [("z.jpg", b"z"), ("z.cls", b"1")])
    (tmp_path / "c.tar").write_bytes((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    entries = list(scan_shard(tmp_path / "c.tar"))
    assert good(entries) == [*JPEG, "z"]
    assert [fault.num_lost for fault in bad(entries)] == [0]


@pytest.mark.parametrize("where", ["header", "data", "before cls", "cls header"])
def test_truncated_shard_ends_with_a_fault(tmp_path: Path, where: str) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    jpg, cls = offsets["k3.jpg"], offsets["k3.cls"]
    cut = {"header": jpg + 100, "data": jpg + 900, "before cls": cls, "cls header": cls + 511}[where]
    with open(tmp_path / "a.tar", "r+b") as file:
        file.truncate(cut)
    member = {"header": None, "data": "k3.jpg"}.get(where, "k3.cls")
    offset = jpg if where in ("header", "data") else cls
    assert only_fault(tmp_path / "a.tar", member, offset, "truncated") == ["k0", "k1", "k2"]


def test_missing_end_marker_costs_no_sample(tmp_path: Path) -> None:
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
def test_bad_labels(tmp_path: Path, text: bytes, reason: str) -> None:
    files = [(name, text if name == "k1.cls" else data) for name, data in members()]
    offsets = write_tar(tmp_path / "a.tar", files)
    assert only_fault(tmp_path / "a.tar", "k1.cls", offsets["k1.cls"], reason) == ["k0", "k2", "k3", "k4"]


@pytest.mark.parametrize(("drop", "kept"), [("k1.cls", "k1.jpg"), ("k1.jpg", "k1.cls")])
def test_missing_member(tmp_path: Path, drop: str, kept: str) -> None:
    offsets = write_tar(tmp_path / "a.tar", [(name, data) for name, data in members() if name != drop])
    reason = f"no .{drop[-3:]} member with this key"
    assert only_fault(tmp_path / "a.tar", kept, offsets[kept], reason) == ["k0", "k2", "k3", "k4"]


def test_duplicate_key(tmp_path: Path) -> None:
    offsets = write_tar(tmp_path / "a.tar", members())
    more = [("k1.jpg", b"again"), ("k1.cls", b"1")]
    again = write_tar(tmp_path / "a.tar", members() + more)["k1.jpg"]
    assert again > offsets["k4.cls"]
    assert only_fault(tmp_path / "a.tar", "k1.jpg", again, "duplicate key k1") == list(JPEG)


def test_hard_link_is_no_image(tmp_path: Path) -> None:
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


def test_random_damage_never_raises_and_keeps_the_untouched(tmp_path: Path) -> None:
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


# -- single samples


def small_dataset(
    tmp_path: Path, name: str = "set", names: tuple[str, ...] = ("a", "b", "c", "d", "e"), shard_size: int = 5000
) -> Path:
    samples = [(key, i, jpeg) for i, (key, jpeg) in enumerate(JPEG.items())]
    write_dataset(tmp_path / name, samples, name=name, identities=names, image_size=None, shard_size=shard_size)
    return tmp_path / name


def test_read_samples_in_any_order(tmp_path: Path) -> None:
    dataset = open_dataset(small_dataset(tmp_path))
    assert len(dataset.shards) > 1
    order = np.array([4, 0, 2, 1, 3, 0])
    samples = read_samples(dataset.shard_paths(), dataset.index.select(order))
    assert [sample.key for sample in samples] == [f"k{i}" for i in order]
    assert [sample.jpeg for sample in samples] == [JPEG[f"k{i}"] for i in order]
    assert read_samples(dataset.shard_paths(), dataset.index.select(slice(0, 0))) == []


def damaged_read(dataset_path: Path, offset: int, data: bytes) -> Fault:
    dataset = open_dataset(dataset_path)
    patch(Path(dataset.shards[0].path), offset, data)
    entries = read_samples(dataset.shard_paths(), dataset.index)
    assert [isinstance(entry, Fault) for entry in entries] == [True, False, False, False, False]
    return entries[0]


@pytest.mark.parametrize(
    ("offset", "data", "member", "at", "reason"),
    [
        (10, b"x", None, 0, "smashed tar header"),
        (512 + 1024, b"\0" * 512, "k0.jpg", 1536, "zeros"),
        (512 + 1024 + 512, b"3", "k0.cls", 1536, "label is 3, the index says 0"),
        (512 + 1024 + 512, b"?", "k0.cls", 1536, "not an integer"),
    ],
)
def test_read_samples_checks_again(
    tmp_path: Path, offset: int, data: bytes, member: str | None, at: int, reason: str
) -> None:
    fault = damaged_read(small_dataset(tmp_path), offset, data)
    assert fault.offset == at
    assert reason in fault.reason
    if member and "zeros" not in reason:
        assert fault.member == member


def test_stale_index_is_noticed(tmp_path: Path) -> None:
    dataset = open_dataset(small_dataset(tmp_path, shard_size=9000))
    wrong = dataset.index.select(slice(0, 1))
    shifted = SampleIndex(wrong.shard, wrong.offset + 1536, wrong.num_bytes, wrong.label, wrong.source_label)
    (entry,) = read_samples(dataset.shard_paths(), shifted)
    assert isinstance(entry, Fault)
    assert "which the index has here" in entry.reason


# -- datasets


def test_bare_directory_is_counted_once_and_cached(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "set" / "x-0.tar", members()[:4])
    write_tar(tmp_path / "set" / "x-1.tar", members()[4:])
    dataset = open_dataset(tmp_path / "set")
    assert (dataset.num_images, dataset.num_classes, dataset.name) == (5, 5, "set")
    assert dataset.keys() == list(JPEG)
    assert dataset.index.shard.tolist() == [0, 0, 1, 1, 1]
    assert {column.dtype.name for column in (dataset.index.shard, dataset.index.label)} == {"int32"}
    assert (dataset.index.offset.dtype, dataset.index.num_bytes.dtype) == (np.int64, np.int32)
    assert not any(path.name.startswith(".tmp") for path in own_cache.rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr("rayface.data.directory_scan.scan_shards", None)  # a second scan would fail
        again = open_dataset(tmp_path / "set")
    assert again.digest == dataset.digest
    assert pickle.loads(pickle.dumps(again)).index.offset.tolist() == dataset.index.offset.tolist()
    write_tar(tmp_path / "set" / "x-1.tar", members()[4:8])
    assert open_dataset(tmp_path / "set").num_images == 4


def test_a_home_that_cannot_be_written_costs_a_folder_below_tmp_and_no_second_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "set" / "a.tar", members())
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv("RAYFACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert open_dataset(tmp_path / "set").keys() == list(JPEG)
    (kept,) = (tmp_path / "tmp").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as patched:
        patched.setattr("rayface.data.directory_scan.scan_shards", None)  # a second scan would fail
        assert open_dataset(tmp_path / "set").num_images == 5
    kept.chmod(0o777)  # somebody else could have written it
    with pytest.raises(DataError, match="set RAYFACE_CACHE"):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize("name", ["index.parquet", "faults.json", "dataset.json"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, own_cache: Path, name: str) -> None:
    write_tar(tmp_path / "set" / "a.tar", members())
    open_dataset(tmp_path / "set")
    (damaged,) = own_cache.rglob(name)
    damaged.write_bytes(b"")
    assert open_dataset(tmp_path / "set").keys() == list(JPEG)
    assert damaged.stat().st_size


def test_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "set" / "a.tar", members())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="RAYFACE_CACHE") as caught:
        open_dataset(tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_layout_of_bare_directories(tmp_path: Path) -> None:
    files = [(f"{i}.{s}", d) for i in range(9) for s, d in (("jpg", b"x"), ("cls", b"%d" % (i // 3)))]
    write_tar(tmp_path / "a" / "a.tar", files)
    assert open_dataset(tmp_path / "a").about.layout == "by_identity"
    write_tar(tmp_path / "b" / "a.tar", members())
    assert open_dataset(tmp_path / "b").about.layout == "shuffled"
    assert open_dataset([tmp_path / "a", tmp_path / "b"], join="labels").about.layout == "by_identity"


def test_join_by_identity_name(tmp_path: Path) -> None:
    a = small_dataset(tmp_path, "one", ("ann", "bob", "cy", "di", "ed"))
    b = small_dataset(tmp_path, "two", ("zoe", "bob", "ann", "yan", "ed"))
    dataset = open_dataset([a, b])
    assert dataset.identities == ("ann", "bob", "cy", "di", "ed", "zoe", "yan")
    assert (dataset.num_classes, dataset.name) == (7, "one+two")
    assert dataset.index.label.tolist() == [0, 1, 2, 3, 4, 5, 1, 0, 6, 4]
    assert dataset.index.source_label.tolist() == [0, 1, 2, 3, 4] * 2
    samples = read_samples(dataset.shard_paths(), dataset.index)
    assert [sample.label for sample in samples] == [0, 1, 2, 3, 4] * 2
    assert dataset.keys() == [f"{name}/{key}" for name in ("one", "two") for key in JPEG]


def test_one_label_space_where_names_are_missing(tmp_path: Path) -> None:
    a = small_dataset(tmp_path, "one")
    write_tar(tmp_path / "two" / "a.tar", [("x.jpg", b"x"), ("x.cls", b"11")])
    dataset = open_dataset([a, tmp_path / "two"])
    assert (dataset.num_classes, dataset.identities) == (12, None)
    assert dataset.index.label.tolist() == [0, 1, 2, 3, 4, 11]


def test_real_faces_as_one(faces: Path) -> None:
    dataset = open_dataset([faces / "celeba_wild", faces / "celeba_small"], join="labels")
    assert (dataset.num_images, dataset.num_classes, dataset.faults) == (12944, 2944, ())
    assert dataset.about.image_size == (112, 112)
    assert dataset.about.layout == "shuffled"
    ids = np.array([0, 6027, 6028, 12943])
    samples = read_samples(dataset.shard_paths(), dataset.index.select(ids))
    assert all(isinstance(sample, Sample) and sample.jpeg[:2] == b"\xff\xd8" for sample in samples)
    keys = dataset.keys()
    assert [sample.key for sample in samples] == [keys[i] for i in ids]


# -- counts held against the manifest


def test_truncated_shard_of_a_dataset(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    dataset = open_dataset(folder)
    last = Path(dataset.shards[-1].path)
    start = int(dataset.index.offset[-1])
    with open(last, "r+b") as file:
        file.truncate(start + 700)
    with pytest.raises(DataError) as caught:
        open_dataset(folder)
    message = str(caught.value)
    assert "1 of 5 samples" in message
    assert "data.max_corrupt_fraction" in message
    assert f"{last}: k4 at byte {start}" in message
    assert "\n" not in message
    reduced = open_dataset(folder, max_corrupt_fraction=0.2)
    assert reduced.num_images == 4
    assert reduced.keys() == ["k0", "k1", "k2", "k3"]
    (fault,) = reduced.faults
    assert (fault.member, fault.offset, fault.num_lost, fault.kind) == ("k4", start, 1, "size")


def test_replaced_and_missing_shards(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    shards = open_dataset(folder).shards
    write_tar(Path(shards[0].path), [("other.jpg", b"x" * 30000), ("other.cls", b"0")])
    Path(shards[1].path).unlink()
    dataset = open_dataset(folder, max_corrupt_fraction=1)
    lost = shards[0].num_images + shards[1].num_images
    assert [fault.num_lost for fault in dataset.faults] == [shards[0].num_images, shards[1].num_images]
    assert dataset.num_images == 5 - lost


def test_label_out_of_range_in_the_index_and_without_it(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["num_classes"] = 4
    (folder / "dataset.json").write_text(json.dumps(manifest))
    (folder / "identities.parquet").unlink()
    dataset = open_dataset(folder, max_corrupt_fraction=0.5)
    (fault,) = dataset.faults
    assert (fault.member, fault.kind) == ("k4.cls", "label")
    assert "label 4 is out of range: 4 classes" in fault.reason
    (folder / "index.parquet").unlink()
    assert open_dataset(folder, max_corrupt_fraction=0.5).faults == dataset.faults


def test_counts_without_index_are_held_against_the_manifest(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    (folder / "index.parquet").unlink()
    assert open_dataset(folder, max_corrupt_fraction=0).num_images == 5
    manifest = json.loads((folder / "dataset.json").read_text())
    manifest["shards"][0]["num_images"] += 2
    (folder / "dataset.json").write_text(json.dumps(manifest))
    (fault,) = open_dataset(folder, max_corrupt_fraction=0.5).faults
    assert (fault.kind, fault.num_lost) == ("count", 2)


def edit_index(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(folder / "index.parquet")), folder / "index.parquet")


def test_unusable_directories_are_one_line(tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            open_dataset(folder)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nowhere", "no such dataset folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no tar shards")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "a.tar").write_bytes(b"junk" * 1000)
    refused(tmp_path / "junk", "no tar member in 4000 bytes.*smashed.*remove it")
    for name, content in (("bad1", "{"), ("bad2", '{"name": 3}')):
        folder = small_dataset(tmp_path, name)
        (folder / "dataset.json").write_text(content)
        refused(folder, "dataset.json")
    folder = small_dataset(tmp_path, "escape")
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace("shard-000000.tar", "../escape.tar"))
    refused(folder, "must be the name of a file")
    folder = small_dataset(tmp_path, "short")
    edit_index(folder, lambda table: table.slice(1))
    refused(folder, "sample counts differ.*rayface check --write-manifest")
    folder = small_dataset(tmp_path, "noparquet")
    (folder / "index.parquet").write_bytes(b"x")
    refused(folder, "not a parquet file")
    folder = small_dataset(tmp_path, "names")
    pq.write_table(pa.table({"label": [0, 1], "identity": ["a", "b"]}), folder / "identities.parquet")
    refused(folder, "identities.parquet: label")


def test_bad_arguments(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        open_dataset([folder, folder])
    with pytest.raises(ValueError, match="max_corrupt_fraction 2"):
        open_dataset(folder, max_corrupt_fraction=2)
    with pytest.raises(DataError, match="cannot be opened"):
        open_dataset("nosuch://bucket/set")


# -- object stores


def test_file_uri_is_a_folder(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    assert open_dataset(f"file://{folder}").roots == (str(folder),)


def test_uris_are_read_like_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for S3: a pyarrow filesystem behind a scheme, which goes the way of remote files everywhere."""
    local = pafs.LocalFileSystem()

    def from_uri(uri: str) -> tuple[object, str]:
        return local, str(tmp_path / uri.removeprefix("mem://").partition("?")[0])

    monkeypatch.setattr(paths, "_filesystem", from_uri)
    samples = [(key, i, jpeg) for i, (key, jpeg) in enumerate(JPEG.items())]
    uri = "mem://bucket/set?endpoint_override=here"
    made = write_dataset(uri, samples, name="x", identities="abcde", image_size=None, shard_size=5000)
    assert made.shards[0].path == "mem://bucket/set/shard-000000.tar?endpoint_override=here"
    assert made.keys() == list(JPEG)
    got = read_samples(made.shard_paths(), made.index.select(np.array([3, 0, 4])))
    assert [sample.jpeg for sample in got] == [JPEG["k3"], JPEG["k0"], JPEG["k4"]]
    assert open_dataset(tmp_path / "bucket" / "set").digest == made.digest
    (tmp_path / "bucket" / "set" / "dataset.json").unlink()
    assert open_dataset(uri).num_images == 5
    with pytest.raises(DataError, match="not empty"):
        write_dataset(uri, samples, name="x", identities="abcde", image_size=None)
