"""Parquet files read in the calling thread alone: Arrow's own threads would hold a Python file when Python ends."""

import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.storage import DataError, Source
from rayface.storage.parquet import open_parquet
from tests.conftest import ObjectStore

TABLE = pa.table({"a": range(10_000), "b": [f"{n}" for n in range(10_000)], "c": [n / 7 for n in range(10_000)]})


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Threads that have read from a Source."""
    read, found = Source.read, set()

    def noted(source: Source, offset: int, count: int) -> bytes:
        found.add(threading.get_native_id())
        return read(source, offset, count)

    monkeypatch.setattr(Source, "read", noted)
    return found


READS: list[Callable[[pq.ParquetFile], pa.Table]] = [
    lambda file: file.read(),
    lambda file: file.read(columns=["c", "a"]),
    lambda file: pa.Table.from_batches(file.iter_batches(900, columns=["a", "b"])),
    lambda file: pa.concat_tables(file.read_row_group(group, ["b"]) for group in range(file.num_row_groups)),
]


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("options", [{}, {"buffer_size": 4096}])
def test_parquet_file_is_read_in_the_calling_thread(
    tmp_path: Path, threads: set[int], read: Callable[[pq.ParquetFile], pa.Table], options: dict[str, int]
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(TABLE, path, row_group_size=3000)
    with open_parquet(str(path), **options) as file:
        found = read(file)
    assert threads == {threading.get_native_id()}
    assert found.equals(TABLE.select(found.column_names))


def test_parquet_file_in_a_store_is_read_as_on_a_disk(tmp_path: Path, object_store: ObjectStore) -> None:
    pq.write_table(TABLE, tmp_path / "t.parquet")
    object_store.put("t.parquet", (tmp_path / "t.parquet").read_bytes())
    with open_parquet(object_store.uri("t.parquet")) as file:
        assert file.read().equals(TABLE)


def test_parquet_file_that_is_missing_or_corrupt_raises_and_keeps_no_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DataError, match="missing"):
        open_parquet(str(tmp_path / "missing"))
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(pa.ArrowInvalid):
        open_parquet(str(tmp_path / "text"))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
