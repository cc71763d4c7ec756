"""Rows of a parquet column: in any order, from several threads, and behind corruption."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
