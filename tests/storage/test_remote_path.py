"""Paths in an object store: pathlib's methods, and no credentials in their text."""

import pickle
from types import SimpleNamespace

import pytest
from pyarrow import fs as pafs

from rayface.files import read_json, write_json
from rayface.storage import DataError, RemotePath, path_of, remote_path
from tests.conftest import ObjectStore


def test_remote_path_files_are_written_read_listed_and_deleted(object_store: ObjectStore) -> None:
    run = RemotePath(object_store.uri("runs/one"))
    assert not run.exists()
    assert list(run.iterdir()) == []
    assert run.files() == {}
    write_json(run / "a.json", {"step": 1})
    write_json(run / "checkpoints" / "b.json", {"step": 2})
    assert read_json(run / "a.json") == {"step": 1}
    assert [path.name for path in run.iterdir()] == ["a.json", "checkpoints"]
    assert list(run.files()) == ["a.json", "checkpoints/b.json"]
    assert run.is_dir()
    assert (run / "a.json").is_file()
    assert (run / "a.json").stat().st_size > 5
    (run / "a.json").unlink()
    (run / "a.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="No such object"):
        (run / "a.json").read_text()
    run.remove_tree()
    assert object_store.files() == {}


def test_remote_path_lists_no_unfinished_files(object_store: ObjectStore) -> None:
    run = RemotePath(object_store.uri("run"))
    (run / "a").upload(b"1")
    (run / ".a.0123abcd.tmp").upload(b"2")
    assert list(run.files()) == ["a"]
    assert list(run.iterdir()) == [run / "a"]
    run.remove_tree()
    assert object_store.files() == {}


def test_remote_path_text_is_masked_and_opens_also_after_pickle(object_store: ObjectStore) -> None:
    path = pickle.loads(pickle.dumps(path_of(object_store.uri("runs/one/"))))
    assert isinstance(path, RemotePath)
    assert object_store.secret not in f"{path} {path!r}"
    assert path.name == "one"
    assert path.parent.name == "runs"
    masked = pickle.loads(pickle.dumps(path_of(str(path))))
    assert object_store.secret in masked.__reduce__()[1][0]  # a worker has no other credentials
    write_json(masked / "a.json", [1])
    assert read_json(path / "a.json") == [1]


def test_remote_path_that_holds_a_secret_of_the_environment_is_one_place(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_TOKEN", "run-0003")  # masked in all text, also where it is the name of a folder
    run = RemotePath(object_store.uri("run-0003"))
    assert "run-0003" not in str(run)
    write_json(run / "a.json", [1])
    (run / "b").touch()
    assert read_json(run / "a.json") == [1]
    assert sorted(object_store.files()) == ["run-0003/a.json", "run-0003/b"]


def test_write_without_a_bucket_is_refused_in_one_line(s3_server: ObjectStore) -> None:
    with pytest.raises(DataError, match=r"cannot be written.*NO_SUCH_BUCKET") as caught:
        write_json(RemotePath(s3_server.uri("no-bucket-here/a.json").replace("@/", "@")), {})
    assert "\n" not in str(caught.value)
    assert s3_server.secret not in str(caught.value)


def test_remote_path_files_are_without_names_that_lead_out_of_the_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Store:
        def get_file_info(self, selector: pafs.FileSelector) -> list[SimpleNamespace]:
            names = ("b", "../x", "a/../../x", "a/./x", "a//x", "/x", "a/..", "a/b..c")
            found = [f"bucket/run/journal/{name}" for name in names]
            kind = pafs.FileType.File
            return [SimpleNamespace(path=p, base_name=p.split("/")[-1], type=kind, size=1, mtime_ns=0) for p in found]

    monkeypatch.setattr(remote_path, "locate", lambda uri: (Store(), "bucket/run/journal"))
    assert list(RemotePath("s3://bucket/run/journal").files()) == ["a/b..c", "b"]
