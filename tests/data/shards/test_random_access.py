"""Random access to samples: any order, headers validated again."""

import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayface.bench.slow_store import slow_store
from rayface.data.dataset import open_dataset
from rayface.data.shards import open_files, random_access
from rayface.data.shards.members import encode_sample
from rayface.data.shards.random_access import (
    SampleReader,
    _parse_sample,
    _plain_sample,
    _runs,
    _slicer,
    locate_member,
    read_samples,
)
from rayface.data.shards.samples import Fault, Sample, SampleIndex
from rayface.data.shards.tar import member_blocks
from rayface.storage import Source
from tests.data.shard_files import JPEG, patch, small_dataset


def test_read_samples_in_any_order_returns_that_order(tmp_path: Path) -> None:
    dataset = open_dataset(small_dataset(tmp_path))
    assert len(dataset.shards) > 1
    order = np.array([4, 0, 2, 1, 3, 0])
    samples = read_samples(dataset.shard_paths(), dataset.index.select(order))
    assert [sample.key for sample in samples] == [f"k{i}" for i in order]
    assert [sample.jpeg for sample in samples] == [JPEG[f"k{i}"] for i in order]
    assert read_samples(dataset.shard_paths(), dataset.index.select(slice(0, 0))) == []


def tar(*files: tuple[str, bytes]) -> bytes:
    return b"".join(block for name, data in files for block in member_blocks(name, data))


@pytest.mark.parametrize(
    ("names", "reason", "kind"),
    [
        (["k.1.jpg", "k.1.cls", "k.2.jpg", "k.2.cls"], "also a member of sample k.2", "index"),
        (["k.jpg"], "no label with this key", "missing member"),
        (["k.cls"], "no image with this key", "missing member"),
        (["k.xyz"], "no image with this key", "missing member"),
    ],
)
def test_members_that_are_not_one_sample_are_a_fault_with_the_reason(names: list[str], reason: str, kind: str) -> None:
    data = tar(*((name, b"3") for name in names))
    fault = _parse_sample("a.tar", _slicer(data, 0), 0, len(data), 3)
    assert fault == Fault(shard="a.tar", member=names[0], offset=0, reason=reason, kind=kind)


def test_locate_member_of_a_sample_finds_its_image_however_it_is_named(tmp_path: Path) -> None:
    path, files = tmp_path / "a.tar", [("a.json", b"{}"), ("a.thumb.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3")]
    path.write_bytes(tar(*files))
    assert locate_member(str(path), 0, 3 * 1024, ["jpg"]) == ("a.jpg", 2048)
    assert locate_member(str(path), 0, 2 * 1024, ["jpg"]) == ("a.thumb.jpg", 1024)
    assert locate_member(str(path), 0, 1024, ["jpg"]) == (None, 0)


def test_plain_sample_of_any_damage_is_what_the_general_parser_finds() -> None:
    """The quick parser of plain samples returns the same or leaves it to the general one."""
    random, outcomes = np.random.default_rng(0), []
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    for key, label in (("k1", 3), ("folder/k1", 12)):
        whole = encode_sample(key, label, b"\xff\xd8" + bytes(900))
        samples = [whole, whole[2 * 512 + 512 :] + whole[: 2 * 512 + 512]]  # the label first
        samples.append(encode_sample(key[:-2], label, b"\xff\xd8" + bytes(900)))  # hidden: no sample
        samples.append(whole[:1536] + folder.tobuf(tarfile.USTAR_FORMAT) + whole[1536:])
        samples.append(whole + encode_sample("other", label, b"\xff\xd8"))
        samples.append(tar((f"{key}.jpg", b"\xff\xd8"), (f"{key}.cls", b"%080d" % label)))
        for good, headers in zip(samples[:2], ((0, 1536), (0, 1024)), strict=True):
            for at in [*range(0, 512, 3), *range(1536, 2100), *random.integers(len(good), size=50)]:
                for byte in (0, ord("1"), ord("."), good[at] ^ 1):
                    changed = bytearray(good)
                    changed[at] = byte
                    samples.append(bytes(changed))
                    for header in headers:  # with a valid checksum
                        changed[header + 148 : header + 156] = b" " * 8
                        changed[header + 148 : header + 156] = b"%06o\0 " % sum(changed[header : header + 512])
                    samples.append(bytes(changed))
        for data in samples:
            found = _parse_sample("a.tar", _slicer(data, 512), 512, 512 + len(data), label)
            quick = _plain_sample(data, 512, 0, len(data), label)
            assert quick in (None, found)
            outcomes.append((quick is not None, isinstance(found, Sample)))
    assert outcomes[:6] == [(True, True)] * 2 + [(False, False), (False, True)] + [(False, False)] * 2
    assert outcomes.count((True, True)) > 1000
    assert outcomes.count((False, False)) > 1000


def test_read_samples_of_a_shard_that_was_cut_off_returns_faults_from_there(tmp_path: Path) -> None:
    """Wherever it is cut, also inside a header."""
    dataset = open_dataset(small_dataset(tmp_path))
    path = Path(dataset.shards[0].path)
    whole, index = path.read_bytes(), dataset.index.select(np.flatnonzero(dataset.index.shard == 0))
    ends = index.offset + index.num_bytes
    for length in range(0, int(ends.max()), 100):
        path.write_bytes(whole[:length])
        entries = read_samples(dataset.shard_paths(), index)
        for entry, start, end in zip(entries, index.offset, ends, strict=True):
            if end <= length or start >= length:  # of one that is cut in two, the padding may be all that is missing
                assert isinstance(entry, Sample if end <= length else Fault)


def damaged_read(dataset_path: Path, offset: int, data: bytes) -> Fault:
    dataset = open_dataset(dataset_path)
    patch(Path(dataset.shards[0].path), offset, data)
    entries = read_samples(dataset.shard_paths(), dataset.index)
    assert [isinstance(entry, Fault) for entry in entries] == [True, False, False, False, False]
    return entries[0]


@pytest.mark.parametrize(
    ("offset", "data", "member", "at", "reason"),
    [
        (10, b"x", None, 0, "corrupt tar header"),
        (512 + 1024, b"\0" * 512, "k0.jpg", 1536, "zeros"),
        (512 + 1024 + 512, b"3", "k0.cls", 1536, "label is 3, the index says 0"),
        (512 + 1024 + 512, b"?", "k0.cls", 1536, "not an integer"),
    ],
)
def test_read_samples_of_changed_bytes_returns_faults(
    tmp_path: Path, offset: int, data: bytes, member: str | None, at: int, reason: str
) -> None:
    fault = damaged_read(small_dataset(tmp_path), offset, data)
    assert fault.offset == at
    assert reason in fault.reason
    if member and "zeros" not in reason:
        assert fault.member == member


def test_read_samples_with_a_stale_index_returns_faults(tmp_path: Path) -> None:
    dataset = open_dataset(small_dataset(tmp_path, shard_size=9000))
    wrong = dataset.index.select(slice(0, 1))
    shifted = SampleIndex(wrong.shard, wrong.offset + 1536, wrong.num_bytes, wrong.label, wrong.source_label)
    (entry,) = read_samples(dataset.shard_paths(), shifted)
    assert isinstance(entry, Fault)
    assert "which the index has here" in entry.reason


def test_read_samples_of_an_object_store_reads_across_small_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [encode_sample(f"k{i}", i, JPEG["k0"] + bytes(size)) for i, size in enumerate([0, 0, 0, 70_000, 0])]
    (tmp_path / "a.tar").write_bytes(b"".join(samples) + bytes(1024))
    index = open_dataset(tmp_path).index.select(np.array([4, 2, 0]))
    reads: list[tuple[int, int]] = []

    class CountedSource(Source):
        def read(self, offset: int, count: int) -> bytes:
            reads.append((offset, count))
            return super().read(offset, count)

    monkeypatch.setattr(open_files, "Source", CountedSource)
    starts, sizes = np.cumsum([0, *map(len, samples)]).tolist(), list(map(len, samples))
    path, second = str(tmp_path / "a.tar"), replace(index, shard=index.shard + 1)
    single, merged = [(starts[i], sizes[i]) for i in (0, 2, 4)], [(0, starts[3]), (starts[4], sizes[4])]
    with slow_store([path], 0.0) as (uri,):
        for shards, wanted in (([uri, path], single), ([path, uri], merged)):
            found = read_samples(shards, second)
            assert [sample.key for sample in found] == ["k4", "k2", "k0"]
            assert sorted(reads) == wanted
            reads.clear()


def test_runs_are_neighbours_of_a_shard_with_gaps_that_are_cheaper_than_a_request() -> None:
    far = 32 << 20
    samples = [(1, 700, 100), (0, 0, 100), (0, 100, 50), (0, 150, 10), (0, 161, 9), (1, 0, 500), (1, 800, 100)]
    samples += [(1, 0, 500), (0, far - 100, 100), (0, far, 100), (1, 1101, 9), (2, 1110, 9)]
    shard, offset, num_bytes = np.array(samples).T
    index = SampleIndex(shard, offset, num_bytes, np.arange(12), np.arange(12) + 20)
    found = _runs(index, np.array([0, 200, 5000]))
    assert [(number, positions) for number, positions, *_ in found] == [
        (0, [1, 2, 3]),
        (0, [4]),
        (0, [8]),
        (0, [9]),
        (1, [5]),
        (1, [7, 0, 6]),
        (1, [10]),
        (2, [11]),
    ]
    assert found[5][2:] == ([0, 700, 800], [500, 800, 900], [27, 20, 26])


@pytest.mark.parametrize(
    ("shard", "seconds", "at_once"), [("a.tar", 0.0009, 0), ("a.tar", 0.0011, 4), ("s3://b/a.tar", 0, 1)]
)
def test_reads_are_in_flight_together_where_each_takes_long(
    monkeypatch: pytest.MonkeyPatch, shard: str, seconds: float, at_once: int
) -> None:
    now, together = [0.0], []

    def samples(self: SampleReader, run: Any, path: str) -> list[Any]:
        now[0] += seconds
        return [(position, None) for position in run[1]]

    def map_together(work: Any, runs: Any) -> list[Any]:
        together.extend(mapped := list(runs))
        return [work(run) for run in mapped]

    monkeypatch.setattr(random_access, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(SampleReader, "_samples", samples)
    zeros = np.zeros(12, np.int64)
    with SampleReader(["a.tar", shard]) as reader:
        monkeypatch.setattr(reader._pool, "map", map_together)
        index = SampleIndex(np.arange(12) // 11, zeros, zeros + 512, zeros, zeros)
        assert [position for position, _ in reader.read(index)] == list(range(12))
    assert len(together) == at_once
