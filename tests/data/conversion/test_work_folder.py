"""Files of a conversion: tables with notes, and what a missing or corrupt one says."""

from pathlib import Path

import pyarrow as pa
import pytest

from rayface.data.conversion.work_folder import StoredColumns, note_of, read_table, write_table
from rayface.storage import DataError
from tests.data.conversion.work import work_folder


def test_table_with_a_note_is_read_as_written(tmp_path: Path) -> None:
    path = str(tmp_path / "t.arrow")
    write_table(path, pa.table({"a": [1, 2]}), {"why": ["x", None]})
    assert (read_table(path)["a"].to_pylist(), note_of(read_table(path))) == ([1, 2], {"why": ["x", None]})


def test_read_table_that_is_missing_or_corrupt_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: was written by a task and is missing: the output must be in a folder"):
        read_table(str(tmp_path / "none"))
    (tmp_path / "torn").write_bytes(b"ARROW1\0\0 torn")
    with pytest.raises(DataError, match=r"torn: is corrupt .*: delete the output folder"):
        read_table(str(tmp_path / "torn"))


def test_stored_columns_read_a_table_for_each_access(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        write_table(path, pa.table({"key": [path[-1]]}), {})
    columns = StoredColumns(paths, "key")
    assert [column.to_pylist() for column in columns] == [["a"], ["b"]]
    assert (len(columns), columns[1].to_pylist(), len(columns[1:])) == (2, ["b"], 1)


def test_work_folder_is_created_and_deleted_with_its_files(tmp_path: Path) -> None:
    work = work_folder(tmp_path)
    Path(work.piece(0, 0)).write_bytes(b"x")
    work.delete()
    assert not Path(work.root).exists()
    work.delete()
