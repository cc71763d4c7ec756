"""Writing: deterministic bytes that other programs read; existing data is kept; a killed write starts over."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset

import rayface
from rayface.data import output_folder
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.shards.sequential import scan_shard
from rayface.data.writer import ShardFile, ShardWriter, write_dataset
from rayface.storage import DataError, StorageError
from tests.storage.failing_os import fail

NAMES = ["ann", "bob", "cy"]


def samples(num: int = 12, prefix: str = "k") -> list[tuple[str, int, bytes]]:
    return [(f"{prefix}{i}", i % 3, b"\xff\xd8" + bytes([i]) * (100 * i + 1)) for i in range(num)]


def write(out: Path | str, items: Iterable[tuple[str, int, bytes]], **kwargs: object) -> Dataset:
    settings = {"name": "set", "identities": NAMES, "image_size": (112, 112), "shard_size": 8000, **kwargs}
    return write_dataset(out, items, **settings)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_write_dataset_writes_shards_index_identities_and_manifest(tmp_path: Path) -> None:
    parent = {"path": "elsewhere", "digest": "abc"}
    dataset = write(tmp_path / "out", samples(), licence="CC0", source="drawn", parent=parent)
    assert (dataset.num_images, dataset.num_classes, dataset.identities) == (12, 3, tuple(NAMES))
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    shards = manifest.pop("shards")
    assert manifest == {
        "name": "set",
        "num_classes": 3,
        "num_images": 12,
        "image_size": [112, 112],
        "layout": "shuffled",
        "licence": "CC0",
        "source": "drawn",
        "parent": parent,
        "created_by": f"rayface {rayface.__version__}",
        "identities": hashlib.sha256(b"3 ann3 bob2 cy").hexdigest(),
    }
    assert sum(shard["num_images"] for shard in shards) == 12
    for shard in shards:
        data = (tmp_path / "out" / shard["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["num_bytes"], shard["sha256"])
        assert data.endswith(bytes(1024))  # the end of a tar
    identities = pq.read_table(tmp_path / "out" / "identities.parquet").to_pydict()
    assert identities == {"label": [0, 1, 2], "identity": NAMES, "num_images": [4, 4, 4]}
    index = pq.read_table(tmp_path / "out" / "index.parquet")
    assert index.column_names == ["key", "shard", "offset", "num_bytes", "label"]
    assert {path.name[0] for path in (tmp_path / "out").iterdir()} == {"s", "d", "i"}  # nothing hidden is left
    read = read_samples(dataset.shard_paths(), dataset.index)
    assert [(s.key, s.label, s.jpeg) for s in read] == samples()


def test_written_shards_are_read_by_webdataset(tmp_path: Path) -> None:
    dataset = write(tmp_path / "out", [*samples(), ("é" * 60, 1, b"long")])
    expected = [*samples(), ("é" * 60, 1, b"long")]
    paths = dataset.shard_paths()
    assert len(paths) > 1
    loaded = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    assert [(s["__key__"], int(s["cls"]), s["jpg"]) for s in loaded] == expected
    names = []
    for path in paths:
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            names += [member.name for member in members]
            assert {(m.mtime, m.uid, m.gid, m.mode, m.type) for m in members} == {(0, 0, 0, 0o644, tarfile.REGTYPE)}
        listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
        assert not listed.stderr
    assert names == [f"{key}.{suffix}" for key, _, _ in expected for suffix in ("jpg", "cls")]


def test_write_dataset_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a", samples())
    write(tmp_path / "b", iter(samples()))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_write_dataset_with_a_shard_size_keeps_it(tmp_path: Path) -> None:
    dataset = write(tmp_path / "out", samples(40), shard_size=30720)
    assert all(shard.num_bytes <= 30720 for shard in dataset.shards)
    one_each = write(tmp_path / "tiny", samples(3), shard_size=1)
    assert [shard.num_images for shard in one_each.shards] == [1, 1, 1]
    content = int(write(tmp_path / "all", samples()).index.num_bytes.sum())
    for shard_size, num_shards in ((content + 1024, 1), (content + 1023, 2)):
        assert len(write(tmp_path / str(shard_size), samples(), shard_size=shard_size).shards) == num_shards


@pytest.mark.parametrize(
    ("root", "shard_size", "words"),
    [
        ("out", 0, "shard_size 0: must be a positive number of bytes"),
        ("s3://b/x", 5 * 2**30 + 1, r"5 GiB\) on an object"),
    ],
)
def test_write_dataset_with_a_shard_size_out_of_range_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, shard_size: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        write(root, samples(), shard_size=shard_size)
    assert not list(tmp_path.iterdir())


def test_write_dataset_with_pairs_writes_them_beside_the_shards(tmp_path: Path) -> None:
    write(tmp_path / "out", samples(), pairs=b"path_a,path_b,is_same,fold\n")
    assert (tmp_path / "out" / "pairs.csv").read_bytes() == b"path_a,path_b,is_same,fold\n"


def test_shard_writer_after_an_error_leaves_no_half_file_and_frees_the_folder(tmp_path: Path) -> None:
    settings = {"name": "x", "identities": NAMES, "image_size": None}

    def add(writer: ShardWriter) -> None:
        for sample in [*samples(3), ("k", 9, b"x")]:
            writer.add(*sample)

    with (
        pytest.raises(ValueError, match="label 9 of k"),
        ShardWriter(tmp_path / "out", shard_size=1, **settings) as bad,
    ):
        add(bad)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == [".unfinished", "shard-000000.tar", "shard-000001.tar"]
    with ShardWriter(tmp_path / "out", **settings) as writer:
        writer.add("k", 0, b"x")
        assert writer.finish().num_images == 1
    with ShardFile(str(tmp_path / "half.tar")) as half:
        half.add("k", 0, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_shard_file_writes_image_and_label_of_each_sample(tmp_path: Path) -> None:
    with ShardFile(str(tmp_path / "a.tar")) as shard:
        for key, label, image in samples(3):
            shard.add(key, label, image)
        entry, table = shard.finish(7)
    assert [(s.key, s.label, s.jpeg) for s in scan_shard(tmp_path / "a.tar") if isinstance(s, Sample)] == samples(3)
    assert (entry.path, entry.num_images, table["shard"].to_pylist()) == ("a.tar", 3, [7, 7, 7])


@pytest.mark.parametrize("key", ["a.b", "", "/etc/x", "../x", "a/../b", "a\nb", "a\0b", "x/"])
def test_write_dataset_with_an_invalid_key_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="must be a relative name without dots"):
        write(tmp_path / "out", [(key, 0, b"x")])


@pytest.mark.parametrize("label", [-1, 3])
def test_write_dataset_with_a_label_out_of_range_is_refused(tmp_path: Path, label: int) -> None:
    with pytest.raises(ValueError, match=f"label {label} of k: must be from 0 to 2"):
        write(tmp_path / "out", [("k", label, b"x")])


def test_write_dataset_with_equal_keys_or_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="key 'k3' occurs twice"):
        write(tmp_path / "a", [*samples(), ("k3", 0, b"x")])
    with pytest.raises(DataError, match="no samples"):
        write(tmp_path / "b", [])
    with pytest.raises(ValueError, match="'x' occurs twice"):
        write(tmp_path / "c", samples(), identities=["x", "y", "x"])
    with pytest.raises(ValueError, match="must name at least one identity"):
        write(tmp_path / "c", samples(), identities=[])
    with pytest.raises(ValueError, match="layout"):
        write(tmp_path / "d", samples(), layout="sorted")


def test_write_dataset_over_existing_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", samples())
    before = digests(tmp_path / "out")
    with pytest.raises(DataError, match="is not empty"):
        write(tmp_path / "out", samples(3))
    assert digests(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match="is not empty"):
        write(tmp_path / "mine", samples())
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", samples()).num_images == 12


def test_write_dataset_into_an_impossible_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written") as caught:
        write(tmp_path / "file" / "out", samples())
    assert "\n" not in str(caught.value)


def test_write_dataset_with_an_error_half_way_leaves_no_dataset(tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[str, int, bytes]]:
        yield from samples()
        raise RuntimeError("source broke")

    with pytest.raises(RuntimeError, match="source broke"):
        write(tmp_path / "out", failing())
    with pytest.raises(DataError, match="the dataset is unfinished"):
        open_dataset(tmp_path / "out")
    assert write(tmp_path / "out", samples()).num_images == 12
    write(tmp_path / "clean", samples())
    assert digests(tmp_path / "out") == digests(tmp_path / "clean")


def test_write_dataset_during_another_write_is_refused(tmp_path: Path) -> None:
    settings = {"name": "x", "identities": NAMES, "image_size": None}
    with ShardWriter(tmp_path / "out", **settings) as first:
        first.add("k", 0, b"x")
        with pytest.raises(DataError, match="another process owns it"):
            ShardWriter(tmp_path / "out", **settings)
        assert first.finish().num_images == 1


def test_write_dataset_on_a_full_disk_names_folder_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        fail(patched, "fsync", errno.ENOSPC)
        with pytest.raises(
            StorageError, match=r"out: cannot be written: No space.*: free space there, then run again: it starts over"
        ):
            write(tmp_path / "out", samples())
    assert write(tmp_path / "out", samples()).num_images == 12


@pytest.mark.parametrize("is_listed", [False, True])
def test_write_dataset_after_another_that_finished_since_it_looked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    """The other writer is done between the listing of the folder, before or during its write, and the lock."""
    settings, own = {"name": "x", "identities": NAMES, "image_size": None}, output_folder.exclusive_folder
    first: list[ShardWriter] = []

    def start() -> None:
        first.append(ShardWriter(tmp_path / "out", **settings))
        first[0].add("k", 0, b"x")

    def later(*args: object, **options: object) -> object:
        monkeypatch.setattr(output_folder, "exclusive_folder", own)
        if not is_listed:
            start()
        with first[0]:
            first[0].finish()
        return own(*args, **options)

    if is_listed:
        start()
    monkeypatch.setattr(output_folder, "exclusive_folder", later)
    with pytest.raises(DataError, match=r"is not empty \(.*\); give a new folder"):
        ShardWriter(tmp_path / "out", **settings)
    assert open_dataset(tmp_path / "out").num_images == 1


SLOW_WRITER = """
import sys, time
from rayface.data.writer import write_dataset
def samples():
    for i in range(12):
        yield f"k{i}", i % 3, b"\\xff\\xd8" + bytes([i]) * (100 * i + 1)
        if i == 7:
            print("half", flush=True)
            time.sleep(60)
names = ["ann", "bob", "cy"]
write_dataset(sys.argv[1], samples(), name="set", identities=names, image_size=(112, 112), shard_size=8000)
"""


def test_write_dataset_after_a_kill_starts_over(tmp_path: Path) -> None:
    out = tmp_path / "out"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(out)], stdout=subprocess.PIPE, env=env)
    assert child.stdout is not None
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = sorted(path.name for path in out.iterdir())
    assert "shard-000000.tar" in left
    assert "dataset.json" not in left
    with pytest.raises(DataError, match="the dataset is unfinished"):
        open_dataset(out)
    (out / "notes.txt").write_text("not ours")
    for name in ("shard-1000000.tar", "pairs.csv", ".index.parquet.tmp"):
        (out / name).write_text("of the killed writer")
    started = time.monotonic()
    write(out, samples())
    assert time.monotonic() - started < 30
    (out / "notes.txt").unlink()
    write(tmp_path / "clean", samples())
    assert digests(out) == digests(tmp_path / "clean")
