"""Copies of an object store's shards are complete and equal, or absent; the store stays the truth."""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayface.bench.slow_store import slow_store
from rayface.data.dataset import Dataset, Shard, open_dataset
from rayface.data.shards import copies, open_files
from rayface.data.shards.copies import CopyRules, ShardCopies, copy_rules
from rayface.data.shards.random_access import SampleReader
from rayface.data.shards.samples import Fault, Sample
from rayface.files import hold_lock
from rayface.storage import DataError, FileInfo, Source
from tests.data.shard_files import patch, small_dataset

LARGE = 1 << 30


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Dataset]:
    """A dataset of several shards in a store."""
    dataset = open_dataset(small_dataset(tmp_path, shard_size=3000))
    assert len(dataset.shards) > 1
    with slow_store(dataset.shard_paths(), 0.0) as uris:
        shards = [replace(shard, path=uri) for shard, uri in zip(dataset.shards, uris, strict=True)]
        yield replace(dataset, shards=tuple(shards))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that samples are read from."""
    paths: list[str] = []

    class CountedSource(Source):
        def read(self, offset: int, count: int) -> bytes:
            paths.append(self.path)
            return super().read(offset, count)

    monkeypatch.setattr(open_files, "Source", CountedSource)
    return paths


def files(folder: Path) -> list[str]:
    """The names of the complete copies."""
    return sorted(path.name for path in (folder / "shards").iterdir() if path.name[0] != "." and path.suffix != ".lock")


def read_all(reader: SampleReader, dataset: Dataset) -> list[Sample | Fault]:
    return [sample for _, sample in sorted(reader.read(dataset.index), key=lambda found: found[0])]


def rules(dataset: Dataset, max_bytes: int = LARGE) -> CopyRules:
    return copy_rules(dataset.shards, max_bytes)


def test_shards_are_copied_once_and_read_from_the_copies_then(
    stored: Dataset, own_cache: Path, reads: list[str]
) -> None:
    digests = sorted(str(shard.sha256) for shard in stored.shards)
    with SampleReader(stored.shard_paths()) as reader:
        wanted = read_all(reader, stored)
    with SampleReader(stored.shard_paths(), rules(stored)) as reader:
        assert read_all(reader, stored) == wanted
        until(lambda: files(own_cache) == digests)
        reads.clear()
        assert read_all(reader, stored) == wanted
        assert {os.path.dirname(path) for path in reads} == {str(own_cache / "shards")}
    for digest in digests:
        assert hashlib.sha256((own_cache / "shards" / digest).read_bytes()).hexdigest() == digest
    with SampleReader(stored.shard_paths(), rules(stored)) as reader:  # of another run
        reads.clear()
        assert read_all(reader, stored) == wanted
        assert not [path for path in reads if "://" in path]
    assert reader._copies is not None
    assert reader._copies._closed


@pytest.fixture
def copied(stored: Dataset, own_cache: Path) -> Iterator[tuple[SampleReader, Dataset]]:
    """A reader of a dataset whose shards are all copied."""
    with SampleReader(stored.shard_paths(), rules(stored)) as reader:
        read_all(reader, stored)
        until(lambda: files(own_cache) == sorted(str(shard.sha256) for shard in stored.shards))
        yield reader, stored


def test_damaged_copy_is_deleted_and_its_samples_are_read_from_the_store(
    copied: tuple[SampleReader, Dataset], own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader, stored = copied
    wanted = read_all(reader, stored)
    path = own_cache / "shards" / str(stored.shards[0].sha256)
    patch(path, 10, b"?")
    assert read_all(reader, stored) == wanted
    assert f"{path}: the copy of " in caplog.text
    assert read_all(reader, stored) == wanted
    until(lambda: path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == path.name)


def test_sample_that_is_corrupt_in_the_store_too_is_a_fault_of_the_shard_and_keeps_the_copy(
    copied: tuple[SampleReader, Dataset], own_cache: Path
) -> None:
    reader, stored = copied
    index = stored.index.select(np.array([0]))
    wrong = replace(index, source_label=index.source_label + 1)
    ((_, fault),) = reader.read(wrong)
    assert isinstance(fault, Fault)
    assert fault.shard == stored.shards[0].path
    assert str(stored.shards[0].sha256) in files(own_cache)


def test_copy_that_was_deleted_is_made_again(copied: tuple[SampleReader, Dataset], own_cache: Path) -> None:
    reader, stored = copied
    wanted = read_all(reader, stored)
    path = own_cache / "shards" / str(stored.shards[0].sha256)
    path.unlink()
    assert read_all(reader, stored) == wanted
    assert read_all(reader, stored) == wanted
    until(path.exists)


def test_shard_of_another_sha256_than_the_manifests_is_not_copied(
    stored: Dataset, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = (replace(stored.shards[0], sha256="0" * 64), *stored.shards[1:])
    held = ShardCopies(stored.shard_paths(), copy_rules(shards, LARGE))
    assert held.paths([0]) == {}
    until(lambda: "not copied: its sha256 is not that of the dataset's manifest" in caplog.text)
    held.close()
    assert files(own_cache) == []
    assert held.paths([0]) == {}
    assert not held._wanted


@pytest.mark.parametrize(
    "sha256", ["../../outside", "/tmp/outside", "..", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"]
)
def test_sha256_that_is_none_becomes_no_name_of_a_file(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    shard = Shard(path="s3://b/a.tar", num_images=1, num_bytes=5, sha256=sha256)
    monkeypatch.setattr(copies, "list_files", lambda folder: [FileInfo("a.tar", 5, 1)])
    (name,) = copy_rules([shard], LARGE).names
    assert (name,) == copy_rules([replace(shard, sha256=None)], LARGE).names
    assert re.fullmatch(r"[0-9a-f]{32}\.tar", name)


def test_full_cache_deletes_copies_that_nobody_used_for_an_hour_and_copies_no_more(
    stored: Dataset, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_cache / "shards").mkdir()
    sizes = [shard.num_bytes for shard in stored.shards]
    for name, size, hours in (("recent", 5000, 0.9), ("unused", sizes[1], 1.1), ("ancient", 5000, 721)):
        path = own_cache / "shards" / name
        path.write_bytes(bytes(size))
        os.utime(path, (0, time.time() - hours * 3600))
    held = ShardCopies(stored.shard_paths(), rules(stored, max_bytes=10_000 + sum(sizes[:2])))
    held._copy(0)  # there is room for all
    assert files(own_cache) == sorted([str(stored.shards[0].sha256), "recent", "unused"])
    held = ShardCopies(stored.shard_paths(), rules(stored, max_bytes=5000 + sum(sizes[:2])))
    held._copy(1)
    assert files(own_cache) == sorted([str(shard.sha256) for shard in stored.shards[:2]] + ["recent"])
    held = ShardCopies(stored.shard_paths(), rules(stored, max_bytes=5000 + sum(sizes[:2])))
    assert held.paths([0, 1, 2]).keys() == {0, 1}
    until(lambda: "bytes are in use: what has no copy is read from the store" in caplog.text)
    held.close()
    assert files(own_cache) == sorted([str(shard.sha256) for shard in stored.shards[:2]] + ["recent"])


def test_copy_that_is_being_made_takes_its_whole_room(
    stored: Dataset, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def blocks(source: Source) -> Iterator[bytes]:
        seen.append(sum(path.stat().st_size for path in (own_cache / "shards").iterdir()))
        yield source.read(0, source.size)

    monkeypatch.setattr(copies, "_blocks", blocks)
    ShardCopies(stored.shard_paths(), CopyRules(("a.tar",) * len(stored.shards), LARGE))._copy(0)
    assert seen == [stored.shards[0].num_bytes]
    content = (own_cache / "shards" / "a.tar").read_bytes()  # a name without sha256
    assert hashlib.sha256(content).hexdigest() == stored.shards[0].sha256


def test_copy_in_use_is_marked_so_every_ten_minutes(
    copied: tuple[SampleReader, Dataset], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stored = copied
    path, now = own_cache / "shards" / str(stored.shards[0].sha256), 1000.0
    monkeypatch.setattr(copies.time, "monotonic", lambda: now)
    held = ShardCopies(stored.shard_paths(), rules(stored))
    for passed, marked in ((0, True), (599, False), (1, True), (1, False)):
        now += passed
        os.utime(path, (0, 0))
        assert held.paths([0]) == {0: str(path)}
        assert (path.stat().st_mtime > 0) == marked


def test_shard_that_another_process_copies_is_left_to_it(stored: Dataset, own_cache: Path) -> None:
    held = ShardCopies(stored.shard_paths(), rules(stored))
    name = str(stored.shards[0].sha256)
    lock = hold_lock(own_cache / "shards" / f"{name}.lock")
    held._copy(0)
    assert files(own_cache) == []
    lock.release()
    held._copy(0)
    assert files(own_cache) == [name]
    inode = (own_cache / "shards" / name).stat().st_ino
    held._copy(0)
    assert (own_cache / "shards" / name).stat().st_ino == inode


@pytest.mark.parametrize("failing", ["disk", "store", "short"])
def test_failing_disk_or_store_is_one_line_and_leaves_no_part(
    stored: Dataset, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    held = ShardCopies(stored.shard_paths(), rules(stored))

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device") if failing == "disk" else DataError("gone")

    if failing == "disk":
        monkeypatch.setattr(os, "fsync", fails)
    elif failing == "store":
        monkeypatch.setattr(copies, "_blocks", fails)
    else:
        monkeypatch.setattr(copies, "_blocks", lambda source: [b"short"])
    monkeypatch.setattr(copies, "_PAUSE_SECONDS", 0)
    tries = 0

    def request() -> bool:
        nonlocal tries
        tries += not held._wanted
        held.paths([0])
        return tries > 20

    until(request)
    held.close()
    assert list((own_cache / "shards").iterdir()) == []
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("s3://***@bench/0?")
    assert "bench:bench" not in line


def test_closing_does_not_wait_for_a_copy(stored: Dataset, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, reading, closed = ShardCopies(stored.shard_paths(), rules(stored)), threading.Event(), threading.Event()

    def endless(source: Source) -> Iterator[bytes]:
        while True:
            reading.set()
            yield source.read(0, 10)

    monkeypatch.setattr(copies, "_blocks", endless)
    held.paths([0])
    assert reading.wait(60)
    threading.Thread(target=lambda: (held.close(), closed.set())).start()
    assert closed.wait(60)
    assert list((own_cache / "shards").iterdir()) == []


def test_file_of_many_blocks_is_copied_in_order(
    stored: Dataset, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_BLOCK", 100)
    held = ShardCopies(stored.shard_paths(), rules(stored))
    held._copy(0)  # checks the sha256
    assert files(own_cache) == [stored.shards[0].sha256]


def test_shard_without_a_sha256_is_known_by_path_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(uri: str, changed: int = 1, size: int = 5) -> tuple[str, ...]:
        found = [FileInfo("a.tar", size, changed), FileInfo("b.tar", 5, 1)]
        monkeypatch.setattr(copies, "list_files", lambda folder: found)
        shards = [Shard(path=path, num_images=1, num_bytes=5, sha256=None) for path in (uri, "/a.tar")]
        known = Shard(path="s3://b/known.tar", num_images=1, num_bytes=5, sha256="c" * 64)
        local = replace(known, path="/known.tar")
        return copy_rules([*shards, known, local], 9).names

    first = names("s3://k:secret@b/a.tar")
    assert first[1:] == ("", "c" * 64, "")
    assert len(first[0]) == 36
    assert first == names("s3://k:secret@b/a.tar") == names("s3://k:other@b/a.tar")
    others = [names("s3://b/b.tar"), names("s3://k:secret@b/a.tar", 2), names("s3://k:secret@b/a.tar", 1, 6)]
    assert len({first[0], *(other[0] for other in others)}) == 4
    assert names("s3://b/missing.tar")[0] == ""
