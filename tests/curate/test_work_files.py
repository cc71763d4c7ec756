"""Work files in a store: complete or absent, copied once by each node, deleted on all."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rayface.curate import work_files
from rayface.curate.work_files import WorkPath, local_paths
from rayface.storage import DataError, RemotePath, StorageError


@pytest.fixture
def work(object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkPath:
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "here"))
    return WorkPath(root=RemotePath(object_store.uri("core/.work")), job="job")


def write(path: WorkPath, content: bytes) -> None:
    with path.writing() as stream:
        stream.write(content)


def test_work_files_on_a_disk_are_read_where_they_are_written(tmp_path: Path) -> None:
    path = WorkPath(root=tmp_path) / "runs" / "0"
    assert not path.exists()
    write(path, b"run")
    assert path.exists()
    assert path.local() == tmp_path / "runs" / "0"
    path.delete()
    assert not path.exists()
    path.delete()  # what is not there
    (WorkPath(root=tmp_path) / "runs").delete()
    assert not (tmp_path / "runs").exists()


def test_work_file_of_a_store_is_downloaded_once_by_each_node(
    work: WorkPath, object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [work / "runs" / str(number) for number in range(20)]
    for number, path in enumerate(paths):
        write(path, b"%d" % number)
    assert set(object_store.files()) == {f"core/.work/runs/{number}" for number in range(20)}
    loads: list[str] = []
    download = work_files.download
    monkeypatch.setattr(work_files, "download", lambda uri, copy: (loads.append(uri), download(uri, copy)))
    assert [path.local().read_bytes() for path in paths] == [b"%d" % number for number in range(20)]
    assert not loads  # the node that wrote them
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "there"))
    assert all(path.exists() for path in paths)
    tasks = [threading.Thread(target=local_paths, args=(paths,)) for _ in range(4)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert len(loads) == len(set(loads)) == 20
    assert [path.read_bytes() for path in local_paths(paths)] == [b"%d" % number for number in range(20)]


def test_work_file_whose_writing_fails_is_absent(
    work: WorkPath, object_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off() -> None:
        with (work / "0").writing() as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()

    def refused(source: Path, uri: str) -> None:
        raise StorageError("s3://bucket: no right")

    with monkeypatch.context() as patched:
        patched.setattr(work_files, "upload", refused)
        with pytest.raises(StorageError, match="no right"):
            write(work / "0", b"whole")
    assert not (work / "0").exists()
    assert object_store.files() == {}
    assert not [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    with pytest.raises(DataError, match=r"^s3://\S+/core/\.work/0\S*: cannot be read"):
        (work / "0").local()


def test_deleted_work_files_are_neither_in_the_store_nor_here(
    work: WorkPath, object_store: Any, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write(work / name / "0", b"0")
        write(work / name / "1", b"1")
    (work / "a" / "1").delete()
    (work / "b").delete()
    (work / "c").delete()
    assert set(object_store.files()) == {"core/.work/a/0"}
    assert [path.name for path in (tmp_path / "here").rglob("*") if path.is_file()] == ["0"]


def test_work_files_without_a_folder_for_copies_are_refused_in_one_line(
    work: WorkPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"^\S+/file/work: cannot be written .*; set RAYFACE_CACHE to a folder that can$"
    ):
        write(work / "0", b"0")


def test_work_files_on_a_full_disk_are_refused_in_one_line_with_the_remedy(
    work: WorkPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        with (work / "0").writing():
            raise OSError(errno.ENOSPC, "No space left on device")

    rule = r"^\S+/job/0: cannot be written \(.*No space left.*\); set RAYFACE_CACHE to a folder that can$"
    with pytest.raises(DataError, match=rule):
        full()
    write(work / "0", b"0")
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "there"))

    def no_room(uri: str, copy: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(work_files, "download", no_room)
    with pytest.raises(DataError, match=rule):
        (work / "0").local()


def test_work_file_too_large_to_be_renamed_in_a_store_is_refused(
    work: WorkPath, object_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_files, "LARGEST_REMOTE", 3)
    write(work / "0", b"123")
    with pytest.raises(DataError, match=r"^s3://\S+/1\S*: is larger than 5 GiB: give an output on a disk"):
        write(work / "1", b"1234")
    assert set(object_store.files()) == {"core/.work/0"}


def test_work_files_that_cannot_be_deleted_do_not_fail_the_job(
    work: WorkPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(work / "a" / "0", b"0")

    def refused(path: RemotePath) -> None:
        raise StorageError("s3://bucket: no right")

    monkeypatch.setattr(RemotePath, "remove_tree", refused)
    (work / "a").delete()
    assert not [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert (work / "a").names() == {"0"}
    assert (work / "b").names() == set()


def test_copies_of_a_job_that_nobody_resumed_are_deleted_by_the_next(work: WorkPath, tmp_path: Path) -> None:
    left, used = (tmp_path / "here" / "work" / name for name in ("left", "used"))
    for folder in (left, used):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))
    write(work / "0", b"0")
    assert sorted(path.name for path in (tmp_path / "here" / "work").iterdir()) == ["job", "used"]
