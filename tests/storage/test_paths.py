"""Paths and URIs: their parts, what lies in a folder, and one line for what cannot be had."""

import functools
import os
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from rayface.storage import paths
from rayface.storage.errors import DataError
from rayface.storage.paths import (
    delete,
    exists,
    is_local,
    join,
    list_entries,
    list_files,
    list_names,
    locate,
    make_folder,
    normalise,
    on_disk,
    refuse_repeated,
    split,
)
from rayface.storage.reads import read_bytes
from rayface.storage.writes import write_bytes
from tests.conftest import ObjectStore


@pytest.mark.parametrize(
    ("folder", "name", "path"),
    [
        ("/a/b", "c.tar", "/a/b/c.tar"),
        ("/a/b/", "c.tar", "/a/b/c.tar"),
        ("s3://k:s@b/set?region=x", "c.tar", "s3://k:s@b/set/c.tar?region=x"),
        ("/a?b", "c.tar", "/a?b/c.tar"),  # a question mark in a local path is a letter
    ],
)
def test_split_undoes_join_of_a_path_or_uri(folder: str, name: str, path: str) -> None:
    assert join(folder, name) == path
    assert split(path) == (folder.rstrip("/"), name)


@pytest.mark.parametrize("name", ["/elsewhere/c.tar", "s3://other/c.tar"])
def test_join_of_an_absolute_name_returns_it(name: str) -> None:
    assert join("s3://b/set?region=x", name) == name


@pytest.mark.parametrize("path", ["s3:/bucket/set", Path("gs://bucket/set"), "file:/disk/set"])
def test_normalise_of_a_uri_with_one_slash_is_refused_with_the_uri(path: str | Path) -> None:
    scheme, _, rest = str(path).partition(":/")
    with pytest.raises(DataError, match=f"^{path}: is no URI: write {scheme}://{rest}$"):
        normalise(path)


def test_normalise_of_a_local_path_is_absolute_and_a_uri_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalise("set") == str(tmp_path / "set")
    assert normalise(Path("a/../set")) == str(tmp_path / "set")
    assert normalise("~/set") == str(Path.home() / "set")
    assert normalise(f"file://{tmp_path}/set") == str(tmp_path / "set")
    assert normalise("s3://b/set") == "s3://b/set"
    assert [is_local(path) for path in ("/a", "s3://b/set")] == [True, False]


def test_on_disk_of_a_uri_is_refused_with_the_name_of_the_setting(tmp_path: Path) -> None:
    assert on_disk("runs") == Path("runs")
    assert on_disk(f"file://{tmp_path}") == tmp_path
    rule = "must be a path on a disk that all nodes share, not a URI: mount the storage"
    with pytest.raises(DataError, match=rf"^prune.out: s3://b/x: {rule}$"):
        on_disk("s3://b/x", "prune.out")
    with pytest.raises(DataError, match=rf"^s3://\*\*\*@b/x: {rule}$"):
        on_disk("s3://me:secret@b/x")


def test_locate_of_an_unknown_scheme_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match=r"^nosuch://b/set: cannot be opened \(") as caught:
        locate("nosuch://b/set")
    assert "\n" not in str(caught.value)


def test_locate_of_folders_in_one_bucket_opens_its_filesystem_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
        opened.append(uri)
        return pafs.LocalFileSystem(), "b"

    monkeypatch.setattr(paths, "_filesystem", functools.cache(from_uri))
    found = [locate(f"mem://b/set/{n}/x.tar?region=x")[1] for n in range(2)]
    assert found == ["b/set/0/x.tar", "b/set/1/x.tar"]
    assert [locate(uri)[1] for uri in ("mem://b?region=x", "mem://b/?region=x", "mem://b/set/?region=x")] == [
        "b",
        "b",
        "b/set",
    ]
    assert opened == ["mem://b/?region=x"]


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("s3://k:a/b@bucket/my folder/x.tar?region=x", "bucket/my folder/x.tar"),
        ("s3://bucket/Amélie/1#2.jpg?region=x", "bucket/Amélie/1#2.jpg"),
        ("s3://bucket/a%20b?region=x", "bucket/a%20b"),
        ("s3://bucket/a%20b/50%/x?region=x", "bucket/a%20b/50%/x"),
        ("abfs://box@account.dfs.core.windows.net/a b/x", "box/a b/x"),
        ("abfs://account.blob.core.windows.net/box/a b/x", "box/a b/x"),
        ("fsspec+memory:///a b/x", "/a b/x"),
        ("file:///a b/x", "/a b/x"),
        ("file:///a%20b/c%20d", "/a b/c d"),  # as of Path.as_uri
        ("file:///", "/"),
    ],
)
def test_locate_of_a_uri_takes_object_names_as_they_are(uri: str, inside: str) -> None:
    assert locate(uri)[1] == inside


def test_files_of_folders_with_odd_names_in_a_store_are_written_listed_and_read(object_store: ObjectStore) -> None:
    folders = ["Amélie", "Ann Lee", "a%20b", "a+b #1"]
    for name in folders:
        write_bytes(object_store.uri(f"set/{name}/1 a.jpg"), name.encode())
    assert list_entries(object_store.uri("set"))[1] == folders
    for name in folders:
        assert [file.name for file in list_files(object_store.uri(f"set/{name}"))] == ["1 a.jpg"]
        assert read_bytes(object_store.uri(f"set/{name}/1 a.jpg")) == name.encode()


def test_list_entries_of_a_folder_are_files_by_name_and_sub_folders(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "sub").mkdir()
    files, folders = list_entries(str(tmp_path))
    assert [(file.name, file.size) for file in files] == [("a.tar", 5), ("b.tar", 5)]
    assert files[0].mtime_ns == (tmp_path / "a.tar").stat().st_mtime_ns
    assert folders == ["sub"]
    assert list_names(str(tmp_path)) == ["a.tar", "b.tar", "sub"]


def test_list_entries_with_a_name_that_is_no_utf8_lists_it_and_what_is_beside_it(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / odd).touch()
    (tmp_path / "a.tar").symlink_to("nothing")
    (tmp_path / "b.tar").touch()
    os.mkfifo(tmp_path / "c.tar")
    assert [file.name for file in list_files(str(tmp_path))] == ["b.tar", odd]
    assert list_names(str(tmp_path)) == ["a.tar", "b.tar", "c.tar", odd]


def test_make_folder_with_a_name_that_is_no_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(DataError, match=r"/caf\\udce9: is not valid UTF-8: rename it$"):
        make_folder(path)
    assert not list(tmp_path.iterdir())


def test_refuse_repeated_of_one_place_by_several_names_names_both(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    stores = ["s3://b/x?region=y", "s3://b/x/?region=y"]
    for paths_ in ([a, b], [a, a], stores, ["s3://b/x", "s3://b/x/"]):
        with pytest.raises(DataError, match=r"^data: .*: is given twice.*: leave one of them out$") as caught:
            refuse_repeated(paths_, "data")
        assert (f"also as {paths_[0]}" in str(caught.value)) == (paths_[0] != paths_[1])
    refuse_repeated([a, str(tmp_path), *stores[:1], "s3://b/x"], "data")


def test_list_files_of_no_folder_names_its_kind(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(DataError, match=rf"^{path}: no such folder of embeddings$"):
            list_files(str(path), "folder of embeddings")


def test_exists_and_delete_of_a_file_follow_each_other(tmp_path: Path) -> None:
    make_folder(str(tmp_path / "deep" / "down"))
    path = str(tmp_path / "deep" / "down" / "x")
    assert not exists(path)
    Path(path).touch()
    assert exists(path)
    assert exists(str(tmp_path / "deep"))
    delete(path)
    assert not exists(path)


def test_make_folder_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/sub: cannot be written \(") as caught:
        make_folder(str(tmp_path / "file" / "sub"))
    assert "\n" not in str(caught.value)
