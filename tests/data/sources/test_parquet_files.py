"""Finding parquet files: hidden ones, links to folders and files, and what is refused."""

import os
from pathlib import Path

import pytest

from rayface.data.sources import parquet_files
from rayface.data.sources.parquet_files import find_files
from rayface.storage import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("x.parquet", "a/y.parq", "a/notes.txt", ".hidden.parquet", "a/.hidden.parquet", "a/.git/z.parquet"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return tmp_path / "in"


@pytest.mark.parametrize("local", [True, False])
def test_find_files_of_a_folder_leaves_out_hidden_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(parquet_files, "is_local", lambda path: local)
    assert find_files(str(folder)) == ["a/y.parq", "x.parquet"]
    assert find_files(str(folder / "x.parquet")) == [""]


def test_find_files_with_links_finds_every_file_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "z.parquet").touch()
    (folder / "loop").symlink_to(".")
    (folder / "a" / "up").symlink_to("..")
    (folder / "same").symlink_to("a")
    for name in ("b", "c"):
        (folder / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (folder / "link.parquet").symlink_to("x.parquet")  # as in a cache of the Hub
    assert find_files(str(folder)) == ["a/y.parq", "b/deep/z.parquet", "link.parquet", "x.parquet"]
    (tmp_path / "root").symlink_to(folder)
    assert find_files(str(tmp_path / "root")) == find_files(str(folder))


def test_find_files_that_are_none_or_not_utf_8_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or parquet file"):
        find_files(str(tmp_path / "none"))
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no parquet file in this folder"):
        find_files(str(folder / "empty"))
    (folder / os.fsdecode(b"\xc9.parquet")).touch()
    with pytest.raises(DataError, match=r"\\udcc9\.parquet: the name of a file must be UTF-8: rename it"):
        find_files(str(folder))
