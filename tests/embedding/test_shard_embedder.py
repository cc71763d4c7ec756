"""The work of an embedding actor: keys of the dataset, faults beside the rows, parts of another job refused."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayface.config import EmbedConfig
from rayface.data.dataset import Dataset
from rayface.data.shards.samples import SampleIndex
from rayface.embedding import shard_embedder
from rayface.embedding.embedder import Embedder
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import part_note
from rayface.embedding.rows import read_labels
from rayface.embedding.shard_embedder import (
    EmbedJob,
    ShardEmbedder,
    part_name,
    read_embedded,
    read_images,
    shard_places,
    shard_work,
)
from rayface.storage import DataError
from tests.keyed_dataset import KEYS, embed_keyed, keyed_dataset

JOB = EmbedJob(
    model_sha256="x",
    dataset_digest="d",
    embedding_size=2,
    image_size=16,
    flip=True,
    precision="fp32",
    dtype="fp32",
)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    return keyed_dataset(tmp_path, monkeypatch)


@pytest.fixture
def embedded(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return embed_keyed(dataset, tmp_path / "embeddings", monkeypatch)


def test_embeddings_of_a_dataset_have_its_keys(dataset: Dataset, embedded: Path) -> None:
    assert dataset.keys() == KEYS
    files = open_embeddings(embedded).files
    assert [key for file in files for keys, _ in read_labels(file) for key in keys.to_pylist()] == KEYS


def test_embeddings_of_a_dataset_keep_the_norms_of_the_raw_ones(embedded: Path) -> None:
    table = pq.read_table(embedded / part_name(1))
    assert table["norm"].to_pylist() == [2 * first for first, _ in table["embedding"].to_pylist()]


def test_shard_with_a_corrupt_image_is_embedded_without_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Path(dataset.shards[0].path)
    content, start = bytearray(shard.read_bytes()), int(dataset.index.offset[1])
    content[start + 512 : start + 700] = bytes(188)
    shard.write_bytes(content)
    out = embed_keyed(dataset, tmp_path / "embeddings", monkeypatch)
    rows, note = part_note(str(out / part_name(0)))
    assert rows == 2
    assert [fault["member"] for fault in note["faults"]] == ["1.jpg"]
    found = read_embedded(str(out), 0, dataset, replace(JOB))
    assert (found.number, found.rows, [fault.member for fault in found.faults]) == (0, 2, ["1.jpg"])


def test_read_embedded_of_another_job_or_shard_is_refused(dataset: Dataset, embedded: Path) -> None:
    assert read_embedded(str(embedded), 1, dataset, JOB).rows == 3
    with pytest.raises(DataError, match=r"part-000001.parquet: is not of .*: delete it and run again") as caught:
        read_embedded(str(embedded), 1, dataset, replace(JOB, flip=False))
    assert "\n" not in str(caught.value)


def test_job_id_changes_with_every_fact_and_ignores_those_not_set() -> None:
    ids = {JOB.id, replace(JOB, dtype="fp16").id, replace(JOB, key_prefixes="p").id}
    assert len(ids) == 3
    assert "key_prefixes" not in JOB.facts()
    assert replace(JOB, weights_sha256="w").id == JOB.id


def test_job_of_a_dataset_with_key_prefixes_holds_their_digest(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Embedder(function=Mock(), image_size=16, embedding_size=2, digest="x")
    monkeypatch.setattr(shard_embedder, "load_embedder", lambda *args, **options: model)
    job = EmbedJob.of(EmbedConfig(model="m", dtype="fp32"), dataset)
    assert job.key_prefixes is not None
    assert (job.model_sha256, job.embedding_size, job.dataset_digest) == ("x", 2, dataset.digest)


def test_shard_work_of_some_shards_counts_only_these(dataset: Dataset) -> None:
    first, last = shard_work(dataset, [1, 3])
    assert [(work.number, work.key_prefix) for work in (first, last)] == [(1, "a/1.tar/"), (3, "b/1.tar/")]
    assert last.path == dataset.shards[3].path
    assert last.samples.shard.tolist() == [0, 0, 0]
    assert last.samples.offset.tolist() == dataset.index.offset[9:].tolist()


def test_shard_places_of_a_large_index_are_small_to_send(dataset: Dataset) -> None:
    """The driver sends where the samples are, not the samples."""
    index, count = dataset.index, 100_000
    columns = [np.repeat(column, count) for column in (index.shard, index.offset, index.num_bytes, index.label)]
    large = replace(dataset, index=SampleIndex(*columns, columns[-1]))
    places = list(shard_places(large, range(len(dataset.shards))))
    assert len(pickle.dumps(places)) < 2_000
    assert [len(place.work(large.index).samples) for place in places] == [
        count * shard.num_images for shard in dataset.shards
    ]


@pytest.mark.parametrize("threads", [1, 3])
def test_read_images_in_small_chunks_keeps_the_order_of_the_shard(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(shard_embedder, "CHUNK", 2)
    (work,) = shard_work(dataset, [2])
    chunks = list(read_images(work.path, work.samples, 16, threads))
    assert [chunk.keys for chunk in chunks] == [["0", "1"], ["2"]]
    assert np.concatenate([chunk.labels for chunk in chunks]).tolist() == [0, 1, 2]
    assert [chunk.images.shape for chunk in chunks] == [(2, 16, 16, 3), (1, 16, 16, 3)]


def test_actor_with_another_model_than_the_driver_is_refused(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*args: Any, **options: Any) -> Embedder:
        return Embedder(function=Mock(), image_size=16, embedding_size=2, digest="y")

    monkeypatch.setattr(shard_embedder, "load_embedder", other)
    with pytest.raises(ValueError, match=r"^model m: differs on a node of the cluster: put it on a shared disk"):
        ShardEmbedder(EmbedConfig(model="m"), str(tmp_path), JOB, threads=1, device="cpu")
