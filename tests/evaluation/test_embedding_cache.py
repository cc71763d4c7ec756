"""Cached embeddings by row of a dataset."""

import os
import time

import numpy as np
import pytest

from rayface.evaluation import embedding_cache as module
from rayface.evaluation.embedding_cache import EmbeddingCache
from rayface.models.embedded import Embedded


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(model="m", dataset="d", flip=True, folder=str(tmp_path))


def rows_of(*rows):
    places = np.array(rows)
    return places, Embedded(np.stack([places, -places], axis=1).astype(np.float32), places.astype(np.float32) / 2)


def test_cache_of_rows_in_parts_returns_those_it_has(cache):
    cache.store(*rows_of(5, 1, 9))
    cache.store(*rows_of(2, 5))
    found, embedded = cache.load(np.array([9, 3, 2, 5]))
    assert found.tolist() == [True, False, True, True]
    assert embedded.embeddings.tolist() == [[9, -9], [2, -2], [5, -5]]
    assert embedded.norms.tolist() == [4.5, 1, 2.5]


def test_cache_has_no_rows_of_images_without_an_embedding(cache, tmp_path):
    cache.store(*rows_of(0))
    assert list(tmp_path.iterdir()) == []
    cache.store(*rows_of(0, 3))
    assert cache.load(np.array([0, 3]))[0].tolist() == [False, True]
    (file,) = own_files(tmp_path)
    np.savez(tmp_path / file, rows=[0, 3], embeddings=rows_of(0, 3)[1].embeddings, norms=[1, 1])  # of rayface before
    found, embedded = cache.load(np.array([0, 3]))
    assert (found.tolist(), embedded.embeddings.tolist()) == ([False, True], [[3, -3]])


@pytest.mark.parametrize("change", [{"model": "other"}, {"dataset": "other"}, {"flip": False}])
def test_cache_of_another_model_dataset_or_flip_has_no_rows(cache, change, tmp_path):
    cache.store(*rows_of(1))
    other = EmbeddingCache(**{"model": "m", "dataset": "d", "flip": True, "folder": str(tmp_path), **change})
    found, embeddings = other.load(np.array([1]))
    assert not found.any()
    assert embeddings is None


def test_cache_in_a_damaged_file_counts_as_missing_and_is_replaced(cache, tmp_path):
    cache.store(*rows_of(1))
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:40])
    assert not cache.load(np.array([1]))[0].any()
    cache.store(*rows_of(2))
    assert cache.load(np.array([1, 2]))[0].tolist() == [False, True]


def test_cache_without_a_writable_folder_warns_and_keeps_nothing(tmp_path, messages):
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(model="m", dataset="d", flip=True, folder=str(tmp_path / "file"))
    cache.store(*rows_of(1))
    assert "not cached" in messages()[0]
    assert not cache.load(np.array([1]))[0].any()


def test_cache_above_its_limit_deletes_entries_of_earlier_days_in_order_of_use(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 25_000)
    old, older, oldest, recent = ("a" * 32 + ".npz", "b" * 32, "c" * 32, "d" * 32 + ".npz")
    for days, name in [(2, old), (3, older), (4, oldest), (0, recent), (9, "notes.txt")]:
        entry = tmp_path / name
        if "." not in name:
            entry.mkdir()
        (entry if "." in name else entry / "part-000000.parquet").write_bytes(bytes(10_000))
        os.utime(entry, (time.time() - days * 24 * 3600,) * 2)
    cache.store(*rows_of(1))
    assert {file.name for file in tmp_path.iterdir()} == {old, recent, "notes.txt", *own_files(tmp_path)}
    assert cache.load(np.array([1]))[0].all()


def test_cache_deletes_temporary_files_of_killed_writers_after_a_day(cache, tmp_path):
    old, new = (tmp_path / f".{'a' * 32}.npz.{number}1234567.tmp" for number in range(2))
    for file in (old, new):
        file.touch()
    os.utime(old, (1, 1))
    cache.store(*rows_of(1))
    assert [file.name for file in tmp_path.glob(".*")] == [new.name]


def test_cache_that_is_read_counts_as_used(cache, tmp_path):
    cache.store(*rows_of(1))
    (file,) = own_files(tmp_path)
    os.utime(tmp_path / file, (1, 1))
    cache.load(np.array([1]))
    assert (tmp_path / file).stat().st_mtime > time.time() - 1000


def own_files(folder):
    return [file.name for file in folder.glob("*.npz") if file.stat().st_size < 5000]
