"""Files appear whole or not at all, on a disk, on a store that speaks S3 and on any other of pyarrow.fs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from rayface.data.writer import ShardWriter
from rayface.embedding.part_file import write_part
from rayface.storage import LARGEST_REMOTE, atomic_stream, errors, read_bytes, write_bytes, writes
from tests.storage.failing_os import record_syncs


class HalfWayError(Exception):
    pass


def write_parquet(path: str) -> None:
    table = pa.table({"a": [1, 2]})
    with atomic_stream(path) as stream, pq.ParquetWriter(stream, table.schema) as writer:
        writer.write_table(table)
        raise HalfWayError


def write_embeddings(path: str) -> None:
    def batches() -> Any:
        yield ["a", "b"], np.zeros(2, np.int64), np.eye(2, dtype=np.float32)
        raise HalfWayError

    write_part(path, batches(), size=2, dtype="fp16", note={})


def write_text(path: str) -> None:
    with atomic_stream(path) as stream:
        stream.write(b'{"half":')
        raise HalfWayError


def write_closed(path: str) -> None:
    """A library may close what it is given."""
    with atomic_stream(path) as stream:
        stream.write(b'{"half":')
        stream.close()
        raise HalfWayError


WRITERS = [write_parquet, write_embeddings, write_text, write_closed]


@pytest.fixture(params=["disk", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Callable[[str], str], Callable[[], dict[str, bytes]]]:
    """A function that gives a file's path, and one that gives what lies there."""
    if request.param == "disk":
        return lambda name: str(tmp_path / name), lambda: {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    store = request.getfixturevalue("object_store")
    return store.uri, store.files


@pytest.mark.parametrize("write", WRITERS)
def test_write_with_an_error_half_way_leaves_the_previous_file(place, write):
    path, files = place
    with pytest.raises(HalfWayError):
        write(path("new"))
    assert files() == {}
    write_bytes(path("new"), b"whole")
    with pytest.raises(HalfWayError):
        write(path("new"))
    assert files() == {"new": b"whole"}
    assert read_bytes(path("new")) == b"whole"


def test_commit_on_a_disk_syncs_the_file_before_and_the_folder_after_the_rename(tmp_path, monkeypatch):
    calls = record_syncs(monkeypatch)
    write_bytes(str(tmp_path / "a.json"), b"whole")
    assert calls == [("sync", "a.json"), ("rename", "a.json"), ("sync", tmp_path.name)]


def test_shard_writer_with_an_error_half_way_leaves_no_partial_shard(object_store):
    def write() -> None:
        out = object_store.uri("set")
        with ShardWriter(out, name="set", identities=["ann"], image_size=None, shard_size=4000) as writer:
            for number in range(3):
                writer.add(f"k{number}", 0, bytes(1500))
            raise HalfWayError

    with pytest.raises(HalfWayError):
        write()
    files = object_store.files()
    assert set(files) == {"set/.unfinished", "set/shard-000000.tar", "set/shard-000001.tar"}  # of three
    assert all(shard.endswith(bytes(1024)) for name, shard in files.items() if name.endswith(".tar"))


def test_shard_size_above_the_rename_limit_of_s3_is_refused(object_store):
    with pytest.raises(ValueError, match=r"^shard_size 5368709121: must be at most 5368709120"):
        ShardWriter(object_store.uri("set"), name="s", identities=["a"], image_size=None, shard_size=LARGEST_REMOTE + 1)
    assert object_store.files() == {}


class Store:
    """A filesystem over a folder whose renames fail."""

    type_name = "abfs"

    def __init__(self, error: Exception) -> None:
        self._files, self._error = pafs.LocalFileSystem(), error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def move(self, source: str, destination: str) -> None:
        raise self._error


def test_commit_on_a_store_without_renames_copies_and_deletes(tmp_path, monkeypatch):
    error: Exception = pa.ArrowNotImplementedError("no renames here")
    monkeypatch.setattr(writes, "locate", lambda path: (Store(error), str(tmp_path / "file")))
    with atomic_stream("store://file") as stream:
        stream.write(b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"whole")]
    error = OSError("the network is down")
    with pytest.raises(OSError, match="the network is down"), atomic_stream("store://file") as stream:
        stream.write(b"newer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"whole")]


def test_write_bytes_to_a_store_that_empties_a_file_first_keeps_the_old_one_if_it_is_cut_off(tmp_path, monkeypatch):
    class Cut(Store):
        def open_output_stream(self, path: str, compression: None) -> Any:
            stream = self._files.open_output_stream(path, compression=compression)
            stream.close()  # and writing to it fails
            return stream

    store: Store = Store(pa.ArrowNotImplementedError("no renames here"))
    monkeypatch.setattr(errors, "_BACK_OFF", (0.0, 0.0))
    monkeypatch.setattr(writes, "locate", lambda path: (store, str(tmp_path / "file")))
    write_bytes("store://file", b"whole")
    store = Cut(pa.ArrowNotImplementedError("no renames here"))
    with pytest.raises(ValueError, match="closed file"):
        write_bytes("store://file", b"newer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"whole")]
