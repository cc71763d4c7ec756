"""Keys are unique in a dataset, whatever names its shards give their samples."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.data import keys as keys_module
from rayface.data.check import check
from rayface.data.dataset import Dataset, KeyFile, open_dataset
from rayface.data.keys import batches_of, find_keys, key_hashes, repeated_key
from rayface.data.selection import select, write_selected_shard, write_selection, write_shards_manifest
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault
from rayface.data.shards.tar import encode_member, end_of_archive
from rayface.data.writer import write_dataset
from rayface.storage import DataError


def write_tar(path: Path, samples: list[tuple[str, int, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(encode_member(f"{k}.jpg", jpeg) + encode_member(f"{k}.cls", b"%d" % n) for k, n, jpeg in samples)
    path.write_bytes(data + end_of_archive(len(data)))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Two tars that both count from 00000; the second has one sample more."""
    for shard in range(2):
        write_tar(
            tmp_path / "bare" / f"{shard}.tar", [(f"{k:05d}", k, bytes([shard, k]) * 9) for k in range(3 + shard)]
        )
    return tmp_path / "bare"


KEYS = ["0.tar/00000", "0.tar/00001", "0.tar/00002", "1.tar/00000", "1.tar/00001", "1.tar/00002", "1.tar/00003"]


def content(dataset: Dataset) -> dict[str, bytes]:
    """JPEG bytes by key, read through the index."""
    samples = read_samples(dataset.shard_paths(), dataset.index)
    assert not any(isinstance(sample, Fault) for sample in samples)
    return dict(zip(dataset.keys(), [s.jpeg for s in samples if not isinstance(s, Fault)], strict=True))


JPEGS = {key: bytes([int(key[0]), int(key[-1])]) * 9 for key in KEYS}


def test_keys_of_shards_that_count_from_zero_get_the_shard_name(bare: Path) -> None:
    dataset = open_dataset(bare)
    assert dataset.keys() == KEYS
    assert dataset.key_prefixes == ("0.tar/", "1.tar/")
    assert next(dataset.own_key_batches()).to_pylist() == ["00000", "00001", "00002"]
    assert content(dataset) == JPEGS
    wanted = pa.array(["1.tar/00002", "00003", "0.tar/00001", "2.tar/00000"])
    assert dataset.find([wanted]).tolist() == [5, -1, 1, -1]


def test_write_manifest_keeps_keys_and_an_index_of_equal_keys_is_refused(bare: Path) -> None:
    report = check(bare, write_manifest=True)
    assert (report.ok, report.shared_key) == (True, "00000")
    assert open_dataset(bare).keys() == KEYS
    assert check(bare).ok
    manifest = json.loads((bare / "dataset.json").read_text())
    assert [entry["key_prefix"] for entry in manifest["shards"]] == ["0.tar/", "1.tar/"]
    (bare / "index.parquet").unlink()
    assert open_dataset(bare).keys() == KEYS
    # As an earlier version wrote them: the same keys twice.
    for entry in manifest["shards"]:
        del entry["key_prefix"]
    (bare / "dataset.json").write_text(json.dumps(manifest))
    assert open_dataset(bare).keys() == KEYS
    scanned = open_dataset(bare).index
    columns = {"key": [key[6:] for key in KEYS], "shard": scanned.shard, "offset": scanned.offset}
    pq.write_table(
        pa.table({**columns, "num_bytes": scanned.num_bytes, "label": scanned.label}), bare / "index.parquet"
    )
    with pytest.raises(DataError, match=r"key '00000' is of several samples.*check --write-manifest"):
        open_dataset(bare).keys()
    assert check(bare).counts == {"duplicate key": 1}
    check(bare, write_manifest=True)
    assert open_dataset(bare).keys() == KEYS


@pytest.mark.parametrize("copied", [False, True])
def test_keys_of_a_selection_are_those_of_its_source(bare: Path, tmp_path: Path, copied: bool) -> None:
    source, out = open_dataset(bare), tmp_path / "some"
    chosen = select(source, np.array([1, 4, 6]))
    out.mkdir()
    if copied:
        samples = source.index.select(chosen.rows)
        scans = []
        for number in range(2):
            mine = samples.shard == number
            prefix = source.key_prefixes[number]
            scans.append(
                write_selected_shard(
                    str(out), source.shard_paths(), samples.select(mine), chosen.labels[mine], number, prefix
                )
            )
        write_shards_manifest(str(out), chosen, scans, name="some")
    else:
        write_selection(str(out), chosen, name="some")
    found = open_dataset(out)
    assert content(found) == {KEYS[row]: JPEGS[KEYS[row]] for row in (1, 4, 6)}
    again = tmp_path / "fewer"
    again.mkdir()
    assert write_selection(str(again), select(found, np.array([0, 2])), name="fewer").keys() == [KEYS[1], KEYS[6]]


def test_keys_of_joined_directories_get_the_directory_name(bare: Path, tmp_path: Path) -> None:
    other = tmp_path / "deep" / "set"
    write_dataset(other, [("0.tar/00001", 0, b"x"), ("b", 1, b"y")], name="set", identities="ab", image_size=None)
    both = open_dataset([bare, other], join="labels")
    assert both.keys() == [*(f"bare/{key}" for key in KEYS), "set/0.tar/00001", "set/b"]
    assert both.key_prefixes == ("bare/0.tar/", "bare/1.tar/", "set/")
    third = tmp_path / "third"
    write_dataset(third, [("c", 0, b"x"), ("d", 1, b"y")], name="set", identities="ab", image_size=None)
    assert open_dataset([bare, third], join="labels").keys() == [*KEYS, "c", "d"]
    out = tmp_path / "some"
    out.mkdir()
    found = write_selection(str(out), select(both, np.array([0, 7, 8])), name="some")
    assert found.keys() == ["bare/0.tar/00000", "set/0.tar/00001", "set/b"]
    assert found.key_prefixes == ("bare/0.tar/", "set/")


def test_find_keys_finds_what_a_dict_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "BATCH", 7)
    random = np.random.default_rng(0)
    keys = [f"k{n}" for n in random.integers(0, 80, 100)]
    wanted = [f"k{n}" for n in random.integers(0, 120, 60)]
    places, times = find_keys(batches_of(pa.array(wanted)), batches_of(pa.array(keys)))
    assert times.tolist() == [keys.count(key) for key in wanted]
    last = {key: place for place, key in enumerate(keys)}
    once = times <= 1
    assert places[once].tolist() == [last.get(key, -1) for key in np.array(wanted)[once].tolist()]
    assert [keys[place] for place in places[times > 0]] == [k for k in wanted if k in last]
    assert find_keys([], batches_of(pa.array(keys)))[0].tolist() == []


def test_repeated_key_with_colliding_hashes_compares_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = pa.array([f"k{n}" for n in range(9)])

    def coarse(batches: Iterator[pa.Array]) -> np.ndarray:
        return np.array([len(key) for some in batches for key in some.to_pylist()], np.int64)

    assert repeated_key(key_hashes([keys]), [keys]) is None
    monkeypatch.setattr(keys_module, "key_hashes", coarse)
    assert repeated_key(coarse(iter([keys])), [keys]) is None
    more = pa.array(["k3"])
    assert repeated_key(coarse(iter([keys, more])), [keys, more]) == "k3"


def test_keys_of_many_batches_are_found_and_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Arrow string array ends at 2 GB: nothing may hold the keys of all samples in one."""
    monkeypatch.setattr(keys_module, "BATCH", 2)
    size, count = 4000, 1024
    keys = [f"{k:04d}" + "x" * size for k in range(count)]
    images = [(f"k{k:04d}", k % 2, b"x") for k in range(count)]
    source = write_dataset(tmp_path / "set", images, name="set", identities="ab", image_size=None)
    with pq.ParquetWriter(tmp_path / "long.parquet", pa.schema({"key": pa.string()}), use_dictionary=False) as writer:
        for key in keys:
            writer.write_table(pa.table({"key": [key]}))
    source.__dict__["key_files"] = (KeyFile(path=str(tmp_path / "long.parquet"), rows=None, num_shards=1),)
    (tmp_path / "some").mkdir()
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert source.find([pa.array([keys[k]]) for k in (1000, 3)]).tolist() == [1000, 3]
        found = write_selection(str(tmp_path / "some"), select(source, np.arange(count)), name="some")
        assert [key for some in found.key_batches() for key in some.to_pylist()] == keys
    finally:
        pa.set_memory_pool(before)
    assert 2 * size < (pool.max_memory() or 0) < count * size / 3
