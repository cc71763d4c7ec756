"""Storage errors are retried, then raised with their cause, and never reported as corrupt data."""

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from rayface.data.check import check
from rayface.data.convert import convert as convert_source
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources.folder import FolderSettings, FolderSource
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.shard_embedder import read_images
from rayface.evaluation.pairs import load_pairs
from rayface.storage import DataError, StorageError, errors, paths
from tests.storage.failing_os import fail, picture

PASSING = [errno.EMFILE, errno.ESTALE, errno.EIO, errno.ETIMEDOUT]


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("call", ["open", "pread"])
def test_read_after_a_passing_error_loses_no_sample(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str, number: int
) -> None:
    whole = read_samples(dataset.shard_paths(), dataset.index)
    failing = fail(monkeypatch, call, number, times=2)
    with caplog.at_level(logging.WARNING):
        assert read_samples(dataset.shard_paths(), dataset.index) == whole
    assert failing.failed == 2
    assert os.strerror(number) in caplog.text


def read_all(dataset: Dataset, folder: Path) -> object:
    return read_samples(dataset.shard_paths(), dataset.index)


def embed(dataset: Dataset, folder: Path) -> object:
    first = dataset.index.select(dataset.index.shard == 0)
    return list(read_images(dataset.shards[0].path, first, 16, threads=1))


def evaluate(dataset: Dataset, folder: Path) -> object:
    (folder / "pairs.csv").write_text("path_a,path_b,is_same,fold\nk0.jpg,k1.jpg,1,0\nk0.jpg,k2.jpg,0,1\n")
    return load_pairs(str(folder / "pairs.csv"), dataset.roots[0], image_size=16)


def check_deep(dataset: Dataset, folder: Path) -> object:
    return check(dataset.roots[0], deep=True)


def convert(dataset: Dataset, folder: Path) -> object:
    for i in range(2):
        (folder / "people" / f"p{i}").mkdir(parents=True)
        (folder / "people" / f"p{i}" / "x.jpg").write_bytes(picture(i))
    source = FolderSource(folder / "people", FolderSettings(image_size=16))
    return convert_source(source, folder / "out")


@pytest.mark.parametrize("verb", [read_all, embed, evaluate, check_deep, convert])
def test_every_verb_after_a_lasting_error_stops_with_its_cause(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Callable[[Dataset, Path], object]
) -> None:
    fail(monkeypatch, "pread", errno.EIO)
    with pytest.raises(StorageError, match=r"cannot be read after 3 tries .*Input/output error") as caught:
        verb(dataset, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", [read_all, embed, evaluate, check_deep])
def test_every_verb_with_too_many_open_files_reports_no_damage(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Callable[[Dataset, Path], object]
) -> None:
    fail(monkeypatch, "open", errno.EMFILE, concerns=".tar")
    with pytest.raises(StorageError, match=r"shard-000000.tar: cannot be read after 3 tries .*Too many open files"):
        verb(dataset, tmp_path)


def test_read_of_a_missing_shard_stops_without_a_retry(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(dataset.shards[0].path).unlink()
    monkeypatch.setattr(time, "sleep", None)
    with pytest.raises(DataError, match=r"shard-000000.tar: cannot be read .*No such file"):
        read_samples(dataset.shard_paths(), dataset.index)


def test_read_of_corrupt_bytes_is_a_fault_of_the_sample(dataset: Dataset) -> None:
    with open(dataset.shards[0].path, "r+b") as file:
        file.write(b"\0" * 100)
    first, *others = read_samples(dataset.shard_paths(), dataset.index)
    assert not isinstance(first, Sample)
    assert all(isinstance(sample, Sample) for sample in others)


class Store:
    """A pyarrow filesystem that reports `error` for the first `times` requests for a shard."""

    def __init__(self, root: Path, error: str, times: float) -> None:
        self.local, self.root, self.error, self.times = pafs.LocalFileSystem(), root, error, times

    def from_uri(self, uri: str) -> tuple[object, str]:
        return self, str(self.root / uri.removeprefix("mem://"))

    def open_input_file(self, path: str) -> object:
        if self.times > 0 and path.endswith(".tar"):
            self.times -= 1
            raise OSError(self.error)
        return self.local.open_input_file(path)


def store(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: str, times: float) -> list[str]:
    root = Path(dataset.roots[0])
    monkeypatch.setattr(paths, "_filesystem", Store(root.parent, error, times).from_uri)
    return [f"mem://set/{Path(path).name}" for path in dataset.shard_paths()]


NETWORK = "When reading information for key 'x' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject operation"


def test_object_store_that_times_out_is_retried(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_samples(dataset.shard_paths(), dataset.index)
    assert read_samples(store(dataset, monkeypatch, NETWORK, 2), dataset.index) == whole
    with pytest.raises(StorageError, match="NETWORK_CONNECTION"):
        read_samples(store(dataset, monkeypatch, NETWORK, float("inf")), dataset.index)


def test_object_store_that_refuses_is_not_retried(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = store(dataset, monkeypatch, NETWORK.replace("NETWORK_CONNECTION", "ACCESS_DENIED"), float("inf"))
    monkeypatch.setattr(time, "sleep", None)
    with pytest.raises(DataError, match="ACCESS_DENIED"):
        read_samples(shards, dataset.index)


def test_open_dataset_with_an_unreadable_index_reports_no_damage(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Path(dataset.roots[0]) / "index.parquet"
    with monkeypatch.context() as patched:
        fail(patched, "open", errno.EIO, concerns="index.parquet")
        with pytest.raises(StorageError, match=r"index.parquet"):
            open_dataset(dataset.roots[0])
    data = index.read_bytes()
    index.write_bytes(data[:-100] + b"\xff" * 92 + data[-8:])
    monkeypatch.setattr(time, "sleep", None)
    with pytest.raises(DataError, match="not a parquet file"):
        open_dataset(dataset.roots[0])


def test_open_embeddings_with_unreadable_files_reports_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4, np.float32)), 2)
    pq.write_table(pa.table({"key": ["a", "b"], "label": [0, 1], "embedding": embedding}), tmp_path / "a.parquet")
    assert open_embeddings(str(tmp_path)).num_rows == 2
    fail(monkeypatch, "pread", errno.ETIMEDOUT)
    with pytest.raises(StorageError, match=r"a.parquet"):
        open_embeddings(str(tmp_path))


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("AWS Error NO_SUCH_BUCKET during PutObject operation", "create the bucket"),
        ("Bucket 'faces' not found. To create buckets, enable the allow_bucket_creation option.", "create the bucket"),
        ("AWS Error UNKNOWN (HTTP status 400) during PutObject operation: ExpiredToken", "renew the credentials"),
        ("AWS Error ACCESS_DENIED during HeadObject operation", "the right to read, write, list and delete"),
        ("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation", r"the region of the bucket: \?region="),
        ("AWS Error UNKNOWN (HTTP status 507): InsufficientStorage", "free space in the store"),
    ],
)
def test_error_of_a_store_that_lasts_names_its_remedy_in_one_line_without_a_retry(reason: str, remedy: str) -> None:
    tries = []

    def refuse() -> None:
        tries.append(1)
        raise OSError(f"When putting key:\n{reason}")

    with pytest.raises(DataError, match=f"^s3://b/x: cannot be written .*: .*{remedy}") as caught:
        errors.retried("s3://b/x", refuse, "cannot be written")
    assert len(tries) == 1
    assert "\n" not in str(caught.value)


def test_retries_of_a_store_wait_different_times(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(errors, "_BACK_OFF", (1.0,) * 8)
    monkeypatch.setattr(time, "sleep", waits.append)

    def time_out() -> None:
        raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached")

    with pytest.raises(StorageError, match=r"after 9 tries .*Timeout was reached"):
        errors.retried("s3://b/x", time_out)
    assert len(set(waits)) > 1
    assert all(0.5 <= wait <= 1.0 for wait in waits)
