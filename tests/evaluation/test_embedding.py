"""Embeddings of a protocol's images: by key, from the cache, by the model, and by the job."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from rayface.config import Config, load
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.writer import write_dataset
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part
from rayface.evaluation import embedding as module
from rayface.evaluation.all_vs_all_protocol import AllVsAllProtocol
from rayface.evaluation.embedding import ModelEmbeddings, rows_by_key
from rayface.evaluation.image_rows import ImageRows
from rayface.storage import DataError
from tests.small_model import save_small_model

NUM_IMAGES = 8


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Eight different images of four identities."""
    noise = np.random.default_rng(0).integers(0, 255, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    samples = [(f"k{i}", i // 2, simplejpeg.encode_jpeg(image)) for i, image in enumerate(noise)]
    write_dataset(tmp_path / "set", samples, name="set", identities=list("abcd"), image_size=(32, 32))
    return open_dataset(tmp_path / "set")


@pytest.fixture
def embedded(dataset: Dataset, tmp_path: Path) -> Any:
    """A function -> embeddings of the whole dataset, opened anew, by a small model; they are cached."""
    save_small_model(tmp_path / "model")
    changes = {"model": tmp_path / "model", "all_vs_all": dataset.roots[0], "cache": tmp_path / "cache"}
    config = load(overrides={f"evaluate.{key}": str(value) for key, value in changes.items()})
    return lambda: ModelEmbeddings(config)("all_vs_all", whole(open_dataset(dataset.roots)))


def whole(dataset: Dataset) -> AllVsAllProtocol:
    return AllVsAllProtocol(ImageRows(dataset=dataset, rows=np.arange(dataset.num_images)), 32, {})


def damage(dataset: Dataset, row: int) -> bytes:
    """Overwrite an image, whose shard keeps its size; return the shard's content before."""
    path, start = Path(dataset.shard_paths()[0]), int(dataset.index.offset[row])
    before = path.read_bytes()
    path.write_bytes(before[: start + 512] + bytes(256) + before[start + 768 :])
    return before


def readable(embedded: Any) -> list[bool]:
    return embedded.embeddings.any(axis=1).tolist()


def test_rows_by_key_of_images_that_are_listed_twice_gives_each_its_embedding(dataset: Dataset, tmp_path: Path) -> None:
    vectors = np.eye(NUM_IMAGES, dtype=np.float32) * np.arange(1, 9)[:, None]
    batch = (dataset.keys()[:6], np.zeros(6, np.int64), vectors[:6], np.arange(6, dtype=np.float32))
    write_part(str(tmp_path / "e.parquet"), [batch], size=NUM_IMAGES, dtype="fp32", note={}, norms=True)
    rows = np.array([5, 0, 7, 0, 2, 5, 0, 7])
    found = rows_by_key(open_embeddings(tmp_path / "e.parquet"), ImageRows(dataset=dataset, rows=rows))
    np.testing.assert_array_equal(found.embeddings, np.eye(8)[rows] * (rows != 7)[:, None])
    np.testing.assert_array_equal(found.norms, np.where(rows == 7, np.nan, rows))


@pytest.mark.parametrize("scale", [1e25, 1e-30])
def test_rows_by_key_of_rows_whose_squares_overflow_float32_have_length_1(
    dataset: Dataset, tmp_path: Path, scale: float
) -> None:
    batch = (dataset.keys(), np.zeros(NUM_IMAGES, np.int64), np.eye(NUM_IMAGES, dtype=np.float32) * np.float32(scale))
    write_part(str(tmp_path / "e.parquet"), [batch], size=NUM_IMAGES, dtype="fp32", note={})
    images = ImageRows(dataset=dataset, rows=np.arange(NUM_IMAGES))
    np.testing.assert_array_equal(rows_by_key(open_embeddings(tmp_path / "e.parquet"), images).embeddings, np.eye(8))


def test_rows_by_key_of_a_key_with_two_embeddings_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    batch = ([*dataset.keys()[:3], "k1"], np.zeros(4, np.int64), np.eye(4, dtype=np.float32))
    write_part(str(tmp_path / "e.parquet"), [batch], size=4, dtype="fp32", note={})
    images = ImageRows(dataset=dataset, rows=np.arange(NUM_IMAGES))
    with pytest.raises(DataError, match=r"^embeddings of k1: there are 2 in this set: must be one per key"):
        rows_by_key(open_embeddings(tmp_path / "e.parquet"), images)


def test_model_embeddings_of_an_image_that_is_repaired_has_it_and_keeps_the_others(
    dataset: Dataset, embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = damage(dataset, 3)
    assert readable(embedded()) == [row != 3 for row in range(NUM_IMAGES)]
    Path(dataset.shard_paths()[0]).write_bytes(before)
    places = []
    embed = module.embed_protocol

    def counted(protocol: Any, model: Any, chosen: Any, **options: Any) -> Any:
        places.append(chosen.tolist())
        return embed(protocol, model, chosen, **options)

    monkeypatch.setattr(module, "embed_protocol", counted)
    repaired = embedded()
    assert readable(repaired) == [True] * NUM_IMAGES
    embedded()
    assert places == [[3]]


def test_model_embeddings_without_a_readable_image_cache_nothing(dataset: Dataset, embedded: Any) -> None:
    path = Path(dataset.shard_paths()[0])
    before = path.read_bytes()
    for row in range(NUM_IMAGES):
        damage(dataset, row)
    assert readable(embedded()) == readable(embedded()) == [False] * NUM_IMAGES
    path.write_bytes(before)
    assert readable(embedded()) == [True] * NUM_IMAGES


def test_model_embeddings_by_the_job_read_images_again_that_its_parts_lack(
    dataset: Dataset, embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = embedded()

    def embed(config: Config) -> None:  # of a time when image 3 was not readable
        folder, kept = Path(str(config.embed.out)), np.arange(NUM_IMAGES) != 3
        folder.mkdir(parents=True)
        keys = [key for key, is_kept in zip(dataset.keys(), kept, strict=True) if is_kept]
        batch = (keys, dataset.index.label[kept], *(column[kept] for column in wanted))
        write_part(str(folder / "part-000000.parquet"), [batch], size=8, dtype="fp32", note={}, norms=True)

    monkeypatch.setattr("rayface.embedding.embed.embed", embed)
    monkeypatch.setattr(module, "_JOB_IMAGES", 1)
    monkeypatch.setattr(module.EmbeddingCache, "load", lambda cache, rows: (np.zeros(len(rows), bool), None))
    found = embedded()
    np.testing.assert_allclose(found.embeddings, wanted.embeddings, atol=1e-6)
    np.testing.assert_allclose(found.norms, wanted.norms, rtol=1e-5)


def test_model_embeddings_by_a_job_that_fails_keep_no_part_with_faults(
    embedded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(config: Config) -> None:
        folder = Path(str(config.embed.out))
        folder.mkdir(parents=True)
        for number, faults in enumerate([[], [{"shard": "s"}]]):
            batch = (["k"], np.zeros(1, np.int64), np.ones((1, 8)))
            note = {"job": "", "faults": faults}
            write_part(str(folder / f"part-{number}.parquet"), [batch], size=8, dtype="fp32", note=note)
        raise DataError("1 of 8 images are corrupt")

    monkeypatch.setattr("rayface.embedding.embed.embed", embed)
    monkeypatch.setattr(module, "_JOB_IMAGES", 1)
    with pytest.raises(DataError, match="1 of 8 images"):
        embedded()
    assert [path.name for path in (tmp_path / "cache").rglob("*.parquet")] == ["part-0.parquet"]


def test_digest_of_a_dataset_that_lost_samples_is_another_one(dataset: Dataset) -> None:
    path = Path(dataset.shard_paths()[0])
    path.write_bytes(path.read_bytes()[: int(dataset.index.offset[5])])
    fewer = open_dataset(dataset.roots, max_corrupt_fraction=1)
    assert fewer.digest == dataset.digest
    assert fewer.num_images == 5
    assert whole(fewer).digest not in ("", whole(dataset).digest)
    assert whole(dataset).digest == dataset.digest
