"""Cached embeddings by row of a dataset."""

import numpy as np
import pytest

from rayface.evaluation.embedding_cache import EmbeddingCache
from rayface.models.forward import Embedded


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
