"""Local copies of files in a store, and local folders that are uploaded."""

import os
from pathlib import Path
from typing import Any

import pytest

from rayface.storage import DataError, local_copy, staged_folder, upload


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_local_copy_of_a_local_path_is_the_path(tmp_path: Path) -> None:
    assert local_copy(tmp_path / "a") == tmp_path / "a"
    assert local_copy(f"file://{tmp_path}/a") == tmp_path / "a"


def test_local_copy_of_a_uri_has_its_files_and_follows_their_changes(object_store: Any, cache: Path) -> None:
    for name in ("w.bin", "w.json", "other"):
        object_store.put(f"m/{name}", name.encode())
    copy = local_copy(object_store.uri("m/w.bin"), beside=("w.json", "none"))
    assert {path.name: path.read_bytes() for path in copy.parent.iterdir()} == {"w.bin": b"w.bin", "w.json": b"w.json"}
    assert local_copy(object_store.uri("m/w.bin"), beside=("w.json", "none")) == copy
    object_store.put("m/w.bin", b"longer weights")
    assert local_copy(object_store.uri("m/w.bin"), beside=("w.json",)).read_bytes() == b"longer weights"
    os.utime(copy.parent, (0, 0))  # not used for decades
    local_copy(object_store.uri("m/other"))
    assert not copy.exists()
    assert not list(cache.glob("copies/.tmp-*"))


def test_local_copy_that_is_used_again_is_not_deleted(object_store: Any) -> None:
    for name in ("w.bin", "other"):
        object_store.put(f"m/{name}", name.encode())
    copy = local_copy(object_store.uri("m/w.bin"))
    os.utime(copy.parent, (0, 0))  # not used for decades
    assert local_copy(object_store.uri("m/w.bin")) == copy
    local_copy(object_store.uri("m/other"))
    assert copy.exists()


def test_local_copy_of_a_file_that_the_store_lacks_is_refused_in_one_line(object_store: Any, cache: Path) -> None:
    with pytest.raises(DataError, match=r"^s3://\*\*\*@.*/m/none\?.*: no such file$"):
        local_copy(object_store.uri("m/none"))
    assert not cache.exists()


def test_local_copy_cut_in_the_middle_leaves_no_file(object_store: Any, cache: Path, monkeypatch: Any) -> None:
    def broken(*arguments: Any) -> bytes:
        raise DataError("cut")

    object_store.put("m/w.bin", b"weights")
    monkeypatch.setattr("rayface.storage.copies.Source.read", broken)
    with pytest.raises(DataError, match="cut"):
        local_copy(object_store.uri("m/w.bin"))
    assert not list(cache.glob("copies/*"))


def test_staged_folder_of_a_uri_uploads_in_the_order_of_writing(object_store: Any, monkeypatch: Any) -> None:
    uploaded = []

    def noted(source: Path, target: str) -> None:
        uploaded.append(source.name)
        upload(source, target)

    monkeypatch.setattr("rayface.storage.copies.upload", noted)
    with staged_folder(object_store.uri("out"), "export.hub") as folder:
        for number, name in enumerate(("weights", "plots/a.png", "a.json")):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(name.encode())
            os.utime(folder / name, (number, number))
        assert object_store.files() == {}
    assert uploaded == ["weights", "a.png", "a.json"]
    assert object_store.files() == {f"out/{name}": name.encode() for name in ("weights", "plots/a.png", "a.json")}
    assert not folder.exists()


def test_staged_folder_left_by_an_error_uploads_nothing(object_store: Any) -> None:
    staged = staged_folder(object_store.uri("out"), "export.hub")
    (staged.__enter__() / "weights").write_bytes(b"half")
    assert not staged.__exit__(KeyError, KeyError(), None)
    assert object_store.files() == {}


def test_staged_folder_of_a_local_path_is_the_path(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out", "export.hub") as folder:
        assert folder == tmp_path / "out"
