"""Checkpoints in an object store: nothing counts before its manifest, and what a killed run left is ignored.

On a disk: what is synced before the rename, and after it.
"""

import json
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest
import torch
from pyarrow import fs as pafs

from rayface.files import write_file
from rayface.models import store_files
from rayface.storage import DataError, RemotePath, StorageError, errors, locate
from rayface.training.checkpointing import checkpoint, folders
from rayface.training.checkpointing.errors import CheckpointError
from rayface.training.checkpointing.progress import Progress
from tests.conftest import ObjectStore
from tests.storage.failing_os import record_syncs


@pytest.fixture
def run(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    monkeypatch.setattr(errors, "_BACK_OFF", (0.0, 0.0))
    return RemotePath(object_store.uri("run"))


def save(run: RemotePath, step: int, *, keep: int = 2, accuracy: float | None = None) -> None:
    state = {"w": torch.full((3,), float(step)), "big": torch.full((1000, 7), float(step))}
    checkpoint.save(run, state, Progress(step=step, accuracy=accuracy), keep=keep)


class _WithoutRenames:
    """A filesystem that renames no file, as Azure without a hierarchical namespace."""

    def __init__(self, filesystem: pafs.FileSystem) -> None:
        self._filesystem = filesystem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._filesystem, name)

    def move(self, source: str, destination: str) -> None:
        raise pa.ArrowNotImplementedError("FileSystem::Move() is not implemented")


def names(run: RemotePath) -> list[str]:
    return [folder.name.removeprefix("step_000000") for folder in checkpoint.all_in(run)]


def test_checkpoint_in_a_store_that_renames_no_file_is_complete(
    run: RemotePath, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def located(path: str) -> tuple[Any, str]:
        filesystem, inside = locate(path)
        return _WithoutRenames(filesystem), inside

    monkeypatch.setattr(store_files, "locate", located)
    save(run, 10)
    assert checkpoint.verify(checkpoint.all_in(run)[0]) == []
    assert not [name for name in object_store.files() if name.endswith(".tmp")]


def test_checkpoint_in_a_store_is_loaded_as_it_was_saved_and_holds_no_secret(
    run: RemotePath, object_store: ObjectStore
) -> None:
    save(run, 10)
    (folder,) = checkpoint.all_in(run)
    assert checkpoint.verify(folder) == []
    state = {"w": torch.zeros(3), "big": torch.zeros(1000, 7)}
    assert checkpoint.load(folder, state) == Progress(step=10)
    assert state["w"].tolist() == [10] * 3
    assert state["big"].eq(10).all()
    assert checkpoint.saved_sizes(folder) == {"w": (3,), "big": (1000, 7)}
    assert not any(object_store.key.encode() in content for content in object_store.files().values())


def test_checkpoints_in_a_store_beyond_keep_are_deleted_but_for_the_best(run: RemotePath) -> None:
    for step, accuracy in ((10, 0.5), (20, 0.8), (30, None), (40, 0.7), (50, 0.1)):
        save(run, step, accuracy=accuracy)
    assert names(run) == ["20", "40", "50"]
    assert {name.split("/")[1] for name in run.files()} == {"step_00000020", "step_00000040", "step_00000050"}


def test_checkpoint_killed_between_its_parts_and_its_manifest_is_ignored_and_then_deleted(
    run: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 10)
    with monkeypatch.context() as patch:
        patch.setattr(folders.StoreFolder, "publish", lambda self, digests: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save(run, 20)
    assert "checkpoints/step_00000020/__0_0.distcp" in run.files()
    assert checkpoint.newest_valid(run) == (checkpoint.folder_of(run, 10), [])
    save(run, 30)
    assert names(run) == ["10", "30"]
    assert not any("step_00000020" in name for name in run.files())


def test_corrupt_checkpoint_in_a_store_is_put_aside_and_kept(run: RemotePath) -> None:
    save(run, 10)
    save(run, 20)
    write_file(checkpoint.folder_of(run, 20) / "__0_0.distcp", b"damaged")
    chosen, (fault,) = checkpoint.newest_valid(run)
    assert chosen == checkpoint.folder_of(run, 10)
    assert "__0_0.distcp" in fault
    assert "has 7 bytes" in fault
    assert names(run) == ["10"]
    assert fault in (run / "faults.log").read_text()
    save(run, 30)
    assert "checkpoints/step_00000020/corrupt_digests.json" in run.files()
    assert checkpoint.set_aside(run, 30) == [checkpoint.folder_of(run, 10)]
    save(run, 30)
    assert names(run) == ["10", "30"]


def test_upload_that_breaks_off_is_repeated_and_the_digests_are_of_what_is_stored(
    run: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Breaking:
        """A stream whose connection is cut twice."""

        def __init__(self, stream: BinaryIO) -> None:
            self._stream = stream

        def write(self, data: bytes) -> int:
            calls.append(1)
            if len(calls) in (2, 5):
                raise OSError("When uploading part: AWS Error NETWORK_CONNECTION during UploadPart: connection reset")
            return self._stream.write(data)

    made = store_files._PartWriter
    monkeypatch.setattr(store_files, "_PartWriter", lambda stream: made(Breaking(stream)))
    save(run, 10)
    assert len(calls) > 5
    assert checkpoint.verify(checkpoint.folder_of(run, 10)) == []


@pytest.mark.parametrize("error", [DataError("s3://b/x: ACCESS_DENIED"), StorageError("s3://b/x: failed")])
def test_checkpoint_that_the_store_refuses_raises_one_line_and_the_next_works(
    run: RemotePath, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save(run, 10)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_text", lambda path, text: (_ for _ in ()).throw(error))
        with pytest.raises(CheckpointError, match=r"step_00000020.* could not be written: .*s3://b/x") as caught:
            save(run, 20)
    assert "\n" not in str(caught.value)
    save(run, 30)
    assert names(run) == ["10", "30"]
    assert json.loads((checkpoint.all_in(run)[-1] / "digests.json").read_text())["files"]


def test_checkpoint_on_a_disk_is_synced_before_its_rename_and_its_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders.DiskFolder(tmp_path / "step_00000001")
    folder.begin()
    calls = record_syncs(monkeypatch)
    folder.publish({})
    before = [("sync", "digests.json"), ("sync", ".step_00000001.tmp")]
    assert calls == [*before, ("rename", "step_00000001"), ("sync", tmp_path.name)]
