"""Random access to samples: any order, headers validated again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayface.bench.slow_store import slow_store
from rayface.data.dataset import open_dataset
from rayface.data.shards import random_access
from rayface.data.shards.members import encode_sample
from rayface.data.shards.random_access import _parse_sample, _plain_sample, read_samples
from rayface.data.shards.samples import Fault, Sample, SampleIndex
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


def test_plain_sample_of_any_damage_is_what_the_general_parser_finds() -> None:
    """The quick parser of plain samples returns the same or leaves it to the general one."""
    random, outcomes = np.random.default_rng(0), []
    for key, label in (("k1", 3), ("folder/k1", 12)):
        whole = encode_sample(key, label, b"\xff\xd8" + bytes(900))
        samples = [whole, whole[2 * 512 + 512 :] + whole[: 2 * 512 + 512]]  # the label first
        for good in samples[:]:
            for at in [*range(0, 512, 3), *range(1536, 2100), *random.integers(len(good), size=50)]:
                for byte in (0, ord("1"), ord("."), good[at] ^ 1):
                    samples.append(good[:at] + bytes([byte]) + good[at + 1 :])
        for data in samples:
            found = _parse_sample("a.tar", lambda at, n, data=data: data[at : at + n], 0, len(data), label)
            quick = _plain_sample(data, 0, 0, len(data), label)
            assert quick in (None, found)
            outcomes.append((quick is not None, isinstance(found, Sample)))
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

    monkeypatch.setattr(random_access, "Source", CountedSource)
    starts, sizes = np.cumsum([0, *map(len, samples)]).tolist(), list(map(len, samples))
    path, second = str(tmp_path / "a.tar"), replace(index, shard=index.shard + 1)
    single, merged = [(starts[i], sizes[i]) for i in (0, 2, 4)], [(0, starts[3]), (starts[4], sizes[4])]
    with slow_store([path], 0.0) as (uri,):
        for shards, wanted in (([uri, path], single), ([path, uri], merged)):
            found = read_samples(shards, second)
            assert [sample.key for sample in found] == ["k4", "k2", "k0"]
            assert sorted(reads) == wanted
            reads.clear()
