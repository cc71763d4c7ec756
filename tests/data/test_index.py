"""Opening a dataset: bytes of memory for each image, and passes over the index."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.data import index
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.shards.scan import INDEX_SCHEMA
from rayface.data.writer import write_dataset
from rayface.storage import DataError

PER_SHARD = 10_000


def index_only(folder: Path, images: int, name: str, *, row_group: int = PER_SHARD, named: bool = False) -> Path:
    """Write a dataset of empty files: index, manifest, and shards that are holes of the right size."""
    folder = folder / name
    folder.mkdir()
    shards, rows = images // PER_SHARD, np.arange(images)
    columns = (
        pa.array(rows, pa.int64()).cast(pa.string()),
        (rows // PER_SHARD).astype(np.int32),
        rows % PER_SHARD * 4096,
        np.full(images, 4096, np.int32),
        (rows % 1000).astype(np.int32),
    )
    table = pa.table([pa.array(column) for column in columns], schema=INDEX_SCHEMA)
    pq.write_table(table, folder / "index.parquet", row_group_size=row_group)
    size = PER_SHARD * 4096 + 10240
    entries = [{"path": f"{i}.tar", "num_images": PER_SHARD, "num_bytes": size} for i in range(shards)]
    for entry in entries:
        with open(folder / entry["path"], "wb") as file:
            file.truncate(size)
    manifest = {"name": name, "num_classes": 1000, "num_images": images, "shards": entries}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    if named:
        names = {"label": np.arange(1000), "identity": [f"{name if i % 2 else ''}{i}" for i in range(1000)]}
        pq.write_table(pa.table(names), folder / "identities.parquet")
    return folder


def peak_bytes(work: Callable[[], Dataset]) -> tuple[int, Dataset]:
    """Return the most memory that numpy and Python held at once while `work` ran; Arrow held batches only."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        result = work()
        assert pool.max_memory() < 8 << 20
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def test_open_dataset_takes_at_most_30_bytes_an_image(tmp_path: Path) -> None:
    images = 1_000_000
    bare = [index_only(tmp_path, images // 2, name) for name in ("a", "b")]
    named = [index_only(tmp_path, images // 2, name, named=True) for name in ("c", "d")]
    alone = index_only(tmp_path, images, "e", row_group=1 << 30)
    open_dataset(bare[0])  # what is imported on first use is not counted
    open_dataset(named[0])
    for paths, classes in (([alone], 1000), (bare, 1000), (named, 1500)):
        join = "labels" if paths is bare else None
        peak, dataset = peak_bytes(lambda paths=paths, join=join: open_dataset(paths, join=join))
        assert peak < 30 * images
        assert (dataset.num_images, dataset.num_classes) == (images, classes)
        assert dataset.index.shard.tolist() == np.repeat(np.arange(images // PER_SHARD), PER_SHARD).tolist()
    # Names with an odd label differ: class 1 of the second directory is the 1,001st.
    assert dataset.index.label[images // 2 : images // 2 + 3].tolist() == [0, 1000, 2]
    assert dataset.index.source_label[-3:].tolist() == [997, 998, 999]
    for number in range(0, 100, 10):
        (alone / f"{number}.tar").unlink()
    peak, dataset = peak_bytes(lambda: open_dataset(alone, max_corrupt_fraction=0.1))
    assert peak < 30 * images
    assert dataset.num_images == 0.9 * images
    assert [fault.num_lost for fault in dataset.faults] == [PER_SHARD] * 10


def test_open_dataset_with_missing_shards_does_not_read_all_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = index_only(tmp_path, 100_000, "half")
    for number in range(1, 9):
        (folder / f"{number}.tar").unlink()
    (folder / "9.tar").write_bytes(b"")
    read: list[list[int]] = []
    monkeypatch.setattr("rayface.data.directory.read_keys_at", lambda path, rows: read.append(rows) or {90_000: "key"})
    dataset = open_dataset(folder, max_corrupt_fraction=0.9)
    assert dataset.num_images == PER_SHARD
    assert read == [[90_000]]  # of the shard that is there, once
    lost = [(fault.member, fault.num_lost) for fault in dataset.faults]
    assert lost == [(None, PER_SHARD)] * 8 + [("key", PER_SHARD)]


def test_read_keys_at_a_few_rows_reads_only_their_row_groups(tmp_path: Path) -> None:
    folder = index_only(tmp_path, 50_000, "set", row_group=7_000)
    wanted = [0, 6_999, 7_000, 49_999]
    assert index.read_keys_at(str(folder / "index.parquet"), wanted) == {row: str(row) for row in wanted}


def columns_of(labels: list[int], **more: list[int]) -> dict[str, np.ndarray]:
    rows = np.arange(len(labels))
    own = {"label": labels, "shard": rows // 2, "offset": 512 * rows, "num_bytes": rows + 1, **more}
    return {name: np.array(values, np.int64 if name == "offset" else np.int32) for name, values in own.items()}


def test_concatenate_of_parts_with_and_without_source_labels_joins_and_empties_them() -> None:
    parts = [columns_of([0, 1, 2]), columns_of([5, 4], source_label=[7, 6])]
    wanted = {name: [*parts[0][name].tolist(), *parts[1][name].tolist()] for name in columns_of([])}
    joined = index.concatenate(parts)
    assert {name: values.tolist() for name, values in joined.items()} == wanted | {"source_label": [0, 1, 2, 7, 6]}
    assert {name: values.dtype for name, values in joined.items() if name == "offset"} == {"offset": np.int64}
    assert parts == [{}, {}]
    assert index.concatenate(alone := [columns_of([3])]) is alone[0]
    assert "source_label" not in index.concatenate([columns_of([0]), columns_of([1])])


def test_columns_are_looked_up_counted_and_kept_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_BATCH", 2)
    column = np.array([2, 0, 1, 2, 2], np.int32)
    found = index.looked_up(np.array([10, 20, 30], np.int16), column)
    assert (found.dtype, found.tolist()) == (np.int16, [30, 10, 20, 30, 30])
    assert index.count(column, 4).tolist() == [1, 1, 3, 0]
    columns = columns_of([4, 5, 6])
    index.keep_rows(columns, np.array([True, False, True]))
    assert {name: values.tolist() for name, values in columns.items()} == {
        "label": [4, 6],
        "shard": [0, 1],
        "offset": [0, 1024],
        "num_bytes": [1, 3],
    }


def test_index_of_another_number_of_samples_is_refused(tmp_path: Path) -> None:
    path = str(index_only(tmp_path, PER_SHARD, "set") / "index.parquet")
    columns, counts = index.read_columns(path, 2, PER_SHARD)
    assert (len(columns["label"]), counts.tolist()) == (PER_SHARD, [PER_SHARD, 0])
    with pytest.raises(DataError, match="sample counts differ: 10000 rows, the shards have 9999"):
        index.read_columns(path, 1, PER_SHARD - 1)


@pytest.mark.parametrize(
    ("offset", "num_bytes", "outside"),
    [(0, 10, False), (4, 6, False), (5, 6, True), (-1, 3, True), (3, 0, True), (3, -1, True), (2**63 - 4, 8, True)],
)
def test_first_outside_of_bytes_that_are_not_in_their_shard_is_their_row(
    monkeypatch: pytest.MonkeyPatch, offset: int, num_bytes: int, outside: bool
) -> None:
    monkeypatch.setattr(index, "_BATCH", 2)
    shard = np.array([1, 1, 1, 0, 0], np.int32)
    columns = {"shard": shard, "offset": np.full(5, 10, np.int64), "num_bytes": np.full(5, 10, np.int32)}
    columns["offset"][3:], columns["num_bytes"][3:] = offset, num_bytes
    assert index.first_outside(columns, [10, 20]) == (3 if outside else None)


def test_open_dataset_with_an_unsorted_index_finds_changed_shards_again(tmp_path: Path) -> None:
    samples = [(f"k{i}", i, bytes([i]) * 3000) for i in range(12)]
    folder = tmp_path / "set"
    write_dataset(folder, samples, name="set", identities="abcdefghijkl", image_size=None, shard_size=30_000)
    table = pq.read_table(folder / "index.parquet")
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(order), folder / "index.parquet")
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard, "a") as tar:  # longer than it was, its samples where they were
            tar.addfile(tarfile.TarInfo("more"), io.BytesIO())
            tar.addfile(tarfile.TarInfo("and more" * 2000), io.BytesIO())
    dataset = open_dataset(folder, max_corrupt_fraction=0)
    assert dataset.keys() == [f"k{i}" for i in order]
    assert {fault.num_lost for fault in dataset.faults} == {0}
    assert len(dataset.faults) == len(dataset.shards) > 1


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("shard", 2_000_000_000, "shard: 2000000000 is not a number from 0 to 1"),  # counted, it would take 16 GB
        ("shard", -1, "shard: -1"),
        ("label", None, "nulls"),
        ("offset", "x", "index.parquet"),
    ],
)
def test_index_with_impossible_values_is_refused(
    tmp_path: Path, column: str, value: int | str | None, words: str
) -> None:
    path = index_only(tmp_path, 2 * PER_SHARD, "set") / "index.parquet"
    table = pq.read_table(path)
    values = [value, *table[column].to_pylist()[1:]] if value != "x" else ["x"] * len(table)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path)
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(path.parent)
    assert "rayface check --write-manifest" in str(caught.value)
    assert "\n" not in str(caught.value)
