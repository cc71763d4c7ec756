"""A sample's key is the same in a dataset, its embeddings, a core set of them, and a dataset of that."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from rayface.config import EmbedConfig
from rayface.curate.clean import tasks as clean_tasks
from rayface.curate.prune.contact_sheets import Face, Row, Sheet, add_pictures
from rayface.curate.prune.pruned_dataset import _select, check_data
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.selection import write_selection
from rayface.data.shards.tar import encode_member, end_of_archive
from rayface.embedding import shard_embedder
from rayface.embedding.embedder import Embedder
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.rows import read_labels
from rayface.embedding.shard_embedder import EmbedJob, ShardEmbedder, shard_work
from rayface.storage import DataError
from rayface.training.teacher_cache import _order


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Two directories of two tars; each tar counts from 0 and holds three flat pictures of other greys."""
    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "cache"))
    for number in range(4):
        path = tmp_path / "ab"[number // 2] / f"{number % 2}.tar"
        path.parent.mkdir(exist_ok=True)
        data = b"".join(
            encode_member(f"{k}.jpg", grey(30 * number + 10 * k)) + encode_member(f"{k}.cls", b"%d" % k)
            for k in range(3)
        )
        path.write_bytes(data + end_of_archive(len(data)))
    return open_dataset([tmp_path / "a", tmp_path / "b"], join="labels")


def grey(colour: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((32, 32, 3), colour, np.uint8), quality=95)


KEYS = [f"{folder}/{shard}.tar/{k}" for folder in "ab" for shard in "01" for k in range(3)]


@pytest.fixture
def embedded(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Embeddings that say the grey of the picture, made as an actor makes them."""
    monkeypatch.setattr(
        shard_embedder,
        "load_embedder",
        lambda *args, **kwargs: Embedder(function=colours, image_size=16, embedding_size=2, digest="x"),
    )
    folder = tmp_path / "embeddings"
    folder.mkdir()
    facts = {"flip": True, "precision": "fp32", "dtype": "fp32", "embedding_size": 2, "image_size": 16}
    job = EmbedJob(model_sha256="x", dataset_digest="d", **facts)
    actor = ShardEmbedder(EmbedConfig(model="m", dtype="fp32"), str(folder), job, threads=1, device="cpu")
    for work in shard_work(dataset, range(4)):
        actor(work)
    return folder


def colours(images: Any) -> Any:
    grey = images[:, 8, 8, 0].astype(np.float32).round(-1) / 10
    return np.stack([grey, np.ones_like(grey)], axis=1)


def test_embeddings_of_a_dataset_have_its_keys(dataset: Dataset, embedded: Path) -> None:
    assert dataset.keys() == KEYS
    files = open_embeddings(embedded).files
    assert [key for file in files for keys, _ in read_labels(file) for key in keys.to_pylist()] == KEYS
    check_data(open_embeddings(embedded), dataset)


def test_core_set_in_any_order_is_found_in_the_dataset_by_key(dataset: Dataset, embedded: Path, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(12)
    rows = {"key": np.array(KEYS)[order], "label": np.tile(range(3), 4)[order], "kept": order % 5 == 0}
    pq.write_table(pa.table(rows), tmp_path / "core_set.parquet")
    selection, known = _select(tmp_path / "core_set.parquet", dataset, {})
    assert (selection.rows.tolist(), known) == ([0, 5, 10], 12)
    (tmp_path / "pruned").mkdir()
    pruned = write_selection(str(tmp_path / "pruned"), selection, name="pruned")
    assert pruned.keys() == ["a/0.tar/0", "a/1.tar/2", "b/1.tar/1"]
    rows["key"][3] = "b/0.tar/9"
    pq.write_table(pa.table(rows), tmp_path / "core_set.parquet")
    with pytest.raises(DataError, match=r"has no key 'b/0.tar/9' \(1 of 12 are missing\): give the dataset"):
        _select(tmp_path / "core_set.parquet", dataset, {})


def test_pictures_digests_and_targets_of_a_key_are_its_own(
    dataset: Dataset, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = Sheet(title="", caption="", rows=[Row(who="", groups=[[Face(key="b/1.tar/0"), Face(key="1.tar/0")]])])
    monkeypatch.setattr("rayface.curate.prune.contact_sheets._picture", lambda jpeg: jpeg)
    add_pictures([sheet], dataset)
    assert [face.jpeg for face in sheet.rows[0].groups[0]] == [grey(90), ""]

    monkeypatch.setattr(clean_tasks, "map_unordered", lambda work, parts, name, rows: map(work, parts))
    found = clean_tasks._digests(dataset, tmp_path / "digests")
    digests = [hashlib.blake2b(grey(10 * row), digest_size=8).digest() for row in range(12)]
    assert found.tolist() == [int.from_bytes(digest, "little") for digest in digests]

    parts = sorted(path.name for path in embedded.glob("*.parquet"))
    out = np.zeros((12, 2), np.float16)
    _order(embedded, {"parts": [{"path": name} for name in parts[::-1]]}, dataset, out)
    assert out[:, 0].tolist() == list(range(12))
