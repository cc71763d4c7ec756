"""Rows of a parquet column: in any order, from several threads, and behind corruption."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.data.sources import parquet_rows
from rayface.data.sources.parquet_rows import RowReaders

ROWS = 5000


@pytest.fixture
def path(tmp_path: Path) -> str:
    data = pa.array([b"%d" % row if row % 7 else None for row in range(ROWS)], pa.binary())
    pq.write_table(pa.table({"data": data}), tmp_path / "x.parquet", row_group_size=ROWS)
    return str(tmp_path / "x.parquet")


def wanted(row: int) -> bytes | None:
    return b"%d" % row if row % 7 else None


def test_row_readers_in_threads_give_every_row(path: str) -> None:
    readers = RowReaders()
    chunks = [range(start, min(start + 100, ROWS)) for start in range(0, ROWS, 100)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rows: list(readers.read(path, 0, "data", rows)), chunks))
    assert [value for chunk in found for value in chunk] == [wanted(row) for row in range(ROWS)]
    readers.close()


def test_row_readers_asked_for_an_earlier_row_start_over(path: str) -> None:
    order = [4999, 0, 2500, 64, 63, 4999]
    assert list(RowReaders().read(path, 0, "data", order)) == [wanted(row) for row in order]


def test_row_readers_behind_the_last_row_give_the_reason(path: str) -> None:
    assert list(RowReaders().read(path, 0, "data", [4998, 5000])) == [wanted(4998), "the row group ends before it"]


@pytest.mark.parametrize("nested", [False, True])
def test_row_readers_of_an_image_that_a_dictionary_repeats_hold_it_once(nested: bool, tmp_path: Path) -> None:
    rows, image = 2_500, bytes(3_000_000)
    data = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([image], pa.binary()))
    column = pa.StructArray.from_arrays([data, pa.nulls(rows, pa.string())], ["bytes", "path"]) if nested else data
    options = {"dictionary_pagesize_limit": 1 << 30, "store_schema": False}
    pq.write_table(pa.table({"data": column}), tmp_path / "x.parquet", **options)
    assert (tmp_path / "x.parquet").stat().st_size < 500_000
    before = pa.total_allocated_bytes()
    readers = RowReaders()
    name = "data.bytes" if nested else "data"
    found = readers.read(str(tmp_path / "x.parquet"), 0, name, range(0, rows, 100))
    assert all(value == image for value in found)
    assert pa.total_allocated_bytes() - before < 600_000_000  # of 7.5 GB
    readers.close()


def test_row_readers_keep_a_bounded_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [bytes([row]) * 10_000 for row in range(200)]
    pq.write_table(pa.table({"data": data}), tmp_path / "x.parquet", use_dictionary=False)
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", 40_000)
    monkeypatch.setattr(parquet_rows, "_KEPT_BYTES", 100_000)
    readers = RowReaders()
    assert list(readers.read(str(tmp_path / "x.parquet"), 0, "data", range(200))) == data
    (reader,) = readers._readers.values()
    assert {len(batch) for _, batch in reader._kept} <= {2, 3, 4}
    assert sum(batch.nbytes for _, batch in reader._kept) <= 140_000
    readers.close()
