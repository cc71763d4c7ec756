"""Test images in the training set: by name, by bytes, by embedding."""

from pathlib import Path

import numpy as np
import pytest

from rayface.data.dataset import open_dataset
from rayface.data.selection import select, write_selection
from rayface.data.synth import synthesize
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part
from rayface.evaluation import leaks as module
from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.leaks import find_leaks, nearest_images


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`test`: 6 identities of 3 images; `training`: one image of identity 0, all of 1, and 10 of another seed."""
    folder = tmp_path_factory.mktemp("sets")
    synthesize(folder / "test", identities=6, images_per_identity=3, image_size=16, processes=1)
    synthesize(folder / "other", identities=10, images_per_identity=2, image_size=16, seed=5, processes=1)
    test = open_dataset(folder / "test")
    rows = np.flatnonzero(test.index.label == 1).tolist() + np.flatnonzero(test.index.label == 0)[:1].tolist()
    (folder / "some").mkdir()
    write_selection(str(folder / "some"), select(test, np.array(sorted(rows))), name="some")
    return folder


def whole(path):
    dataset = open_dataset(path)
    return ImageRows(dataset=dataset, rows=np.arange(dataset.num_images))


@pytest.mark.parametrize("chunk", [2, 512])
def test_leaks_by_bytes_are_the_images_of_the_training_set(sets, monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    test, training = whole(sets / "test"), open_dataset([sets / "some", sets / "other"], join="separate")
    found = find_leaks(test, training)
    label = test.dataset.index.label
    assert found.by_bytes.sum() == 4
    assert found.by_bytes[label == 1].all()
    assert found.counts()["by_bytes"] == {"images": 4, "identities": 2}
    assert found.counts()["by_embedding"] is None
    np.testing.assert_array_equal(found.leaked, found.by_bytes)


def test_leaks_by_name_are_all_images_of_the_identities_in_the_training_set(sets):
    test = whole(sets / "test")
    found = find_leaks(test, open_dataset(sets / "some"))
    np.testing.assert_array_equal(found.by_name, test.dataset.index.label < 2)
    assert found.counts()["by_name"] == {"images": 6, "identities": 2}
    assert found.counts()["any"] == {"images": 6, "identities": 2}


def test_leaks_of_some_test_images_are_in_their_order(sets):
    test = whole(sets / "test")
    rows = np.flatnonzero(test.dataset.index.label == 1)[::-1]
    rows = np.append(rows, np.flatnonzero(test.dataset.index.label == 5))
    found = find_leaks(ImageRows(dataset=test.dataset, rows=rows), open_dataset([sets / "some"]))
    assert found.by_bytes.tolist() == [True] * 3 + [False] * 3


def test_leaks_of_an_unrelated_training_set_are_none(sets):
    assert not find_leaks(whole(sets / "test"), open_dataset(sets / "other")).by_bytes.any()


@pytest.mark.parametrize("rows_at_once", [3, 65_536])
def test_leaks_by_embedding_equal_a_product_of_all_embeddings(sets, tmp_path, monkeypatch, rows_at_once):
    monkeypatch.setattr(module, "_ROWS", rows_at_once)
    random = np.random.default_rng(0)
    test = random.normal(size=(18, 8))
    test /= np.linalg.norm(test, axis=1, keepdims=True)
    training = np.concatenate([random.normal(size=(10, 8)), 3 * test[[2, 7]] + 0.05 * random.normal(size=(2, 8))])
    keys = [f"k{row}" for row in range(12)]
    for number, part in enumerate((slice(0, 7), slice(7, 12))):
        batch = (keys[part], np.zeros(len(keys[part]), np.int64), training[part])
        write_part(str(tmp_path / f"{number}.parquet"), [batch], size=8, dtype="fp32", note={})
    embeddings = open_embeddings(tmp_path)
    cosines = test @ (training / np.linalg.norm(training, axis=1, keepdims=True)).T
    nearest, found = nearest_images(test.astype(np.float32), embeddings)
    np.testing.assert_allclose(nearest, cosines.max(1), atol=1e-6)
    assert list(found) == [keys[place] for place in cosines.argmax(1)]
    leaks = find_leaks(
        whole(sets / "test"), open_dataset(sets / "other"), test_embeddings=test, embeddings=embeddings, above=0.95
    )
    assert np.flatnonzero(leaks.leaked & leaks.by_embedding).tolist() == [2, 7]
    examples = leaks.examples([f"t{row}" for row in range(18)])
    assert {(each["test"], each["training"]) for each in examples} == {("t2", "k10"), ("t7", "k11")}
    assert examples[0]["cosine"] >= examples[1]["cosine"] > 0.95
