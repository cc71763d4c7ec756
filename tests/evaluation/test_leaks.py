"""Test images in the training set: by name, by bytes, by embedding."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayface.data.dataset import open_dataset
from rayface.data.selection import select, write_selection
from rayface.data.shards.samples import SampleIndex
from rayface.data.synth import synthesize
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part
from rayface.evaluation import leaks as module
from rayface.evaluation.image_rows import ImageRows
from rayface.evaluation.leaks import Leaks, add_by_embedding, find_leaks, nearest_images


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`test`: 6 identities of 3 images; `training`: one image of identity 0, all of 1, and 10 of another seed."""
    folder = tmp_path_factory.mktemp("sets")
    synthesize(folder / "test", identities=6, images_per_identity=3, image_size=16, processes=1)
    synthesize(folder / "other", identities=10, images_per_identity=2, image_size=16, seed=5, processes=1)
    test = open_dataset(folder / "test")
    rows = np.flatnonzero(test.index.label == 1).tolist() + np.flatnonzero(test.index.label == 0)[:1].tolist()
    rename(folder / "test", {label: f"person {label}" for label in range(6)})
    rename(folder / "other", {label: f"actor {label}" for label in range(10)})
    test = open_dataset(folder / "test")
    (folder / "some").mkdir()
    write_selection(str(folder / "some"), select(test, np.array(sorted(rows))), name="some")
    return folder


def rename(folder: Path, names: Mapping[int, str]) -> None:
    """Write other names of identities into a dataset."""
    path = folder / "identities.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("identity")
    own = [names.get(label, name) for label, name in enumerate(table["identity"].to_pylist())]
    pq.write_table(table.set_column(column, "identity", pa.array(own)), path)


@pytest.fixture
def drawn(tmp_path: Path) -> Callable[..., Path]:
    """A function of a name, a seed, and names by label -> folder of a drawn set of 3 identities of 2 images."""

    def draw(name: str, seed: int, names: Mapping[int, str]) -> Path:
        synthesize(tmp_path / name, identities=3, images_per_identity=2, image_size=16, seed=seed, processes=1)
        rename(tmp_path / name, names)
        return tmp_path / name

    return draw


def found_in(test: ImageRows, training: object) -> Leaks:
    """Return the leaks of one test set."""
    return find_leaks({"test": test}, training)["test"]


def whole(path):
    dataset = open_dataset(path, join="separate")
    return ImageRows(dataset=dataset, rows=np.arange(dataset.num_images))


@pytest.mark.parametrize("chunk", [2, 512])
def test_leaks_by_bytes_are_the_images_of_the_training_set(sets, monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    test, training = whole(sets / "test"), open_dataset([sets / "some", sets / "other"], join="separate")
    found = found_in(test, training)
    label = test.dataset.index.label
    assert found.by_bytes.sum() == 4
    assert found.by_bytes[label == 1].all()
    assert found.counts()["by_bytes"] == {"images": 4, "identities": 2}
    assert found.counts()["by_embedding"] is None
    np.testing.assert_array_equal(found.by_name, label < 2)
    np.testing.assert_array_equal(found.leaked, found.by_name)


def test_leaks_by_name_are_all_images_of_the_identities_in_the_training_set(sets):
    test = whole(sets / "test")
    found = found_in(test, open_dataset(sets / "some"))
    np.testing.assert_array_equal(found.by_name, test.dataset.index.label < 2)
    assert found.counts()["by_name"] == {"images": 6, "identities": 2}
    assert found.counts()["any"] == {"images": 6, "identities": 2}


def test_leaks_by_name_of_a_person_without_training_images_are_none(drawn: Callable[..., Path]) -> None:
    """As of a training set without manifest whose images of one identity were taken away."""
    names = {0: "Ann", 1: "Bob", 2: "Eve"}
    training = drawn("training", 1, names)
    rename(training, {0: "Kim", 1: "Lea", 2: "Zoe"})
    table = pq.read_table(training / "identities.parquet")
    more = pa.table({"label": [3], "identity": ["Ann"], "num_images": [0]}).cast(table.schema)
    pq.write_table(pa.concat_tables([table, more]), training / "identities.parquet")
    (training / "dataset.json").unlink()
    dataset = open_dataset(training)
    assert "Ann" in (dataset.identities or ())
    assert found_in(whole(drawn("test", 2, names)), dataset).counts()["by_name"] == {"images": 0, "identities": 0}


def test_leaks_by_name_of_several_sets_with_common_names_are_those_of_each_directory(
    drawn: Callable[..., Path],
) -> None:
    people, both = {0: "Ann", 1: "Bob", 2: "Eve"}, "in both"
    training = [
        drawn("a", 1, {0: "Ann", 1: both, 2: "Zoe"}),
        drawn("b", 2, {0: both, 1: "Kim", 2: "Lea"}),
    ]
    first, second = drawn("test", 3, people), drawn("test2", 4, {0: "Ann", 1: "Joe", 2: "Lea"})
    sets = {"one": whole(first), "two": whole([first, second])}
    found = find_leaks(sets, open_dataset(training, join="separate"))
    assert found["one"].counts()["by_name"] == {"images": 2, "identities": 1}
    rows = np.concatenate(
        [np.isin(open_dataset(path).index.label, own) for path, own in ((first, 0), (second, [0, 2]))]
    )
    np.testing.assert_array_equal(found["two"].by_name, rows)
    alone = find_leaks(sets, open_dataset(training[0]))
    assert alone["one"].counts()["by_name"] == {"images": 2, "identities": 1}
    assert alone["two"].counts()["by_name"] == {"images": 4, "identities": 2}


def test_leaks_by_name_in_sets_joined_by_names_are_those_of_each_directory(drawn: Callable[..., Path]) -> None:
    names = {0: "Ann", 1: "Bob", 2: "Eve"}
    first, second = drawn("test", 3, names), drawn("test2", 4, {0: "Eve", 1: "Ann", 2: "Joe"})
    joint = open_dataset([first, second], join="names")
    found = found_in(
        ImageRows(dataset=joint, rows=np.arange(12)), open_dataset(drawn("a", 1, {0: "Ann", 1: "x", 2: "y"}))
    )
    np.testing.assert_array_equal(found.by_name, np.array(joint.identities)[joint.index.label] == "Ann")


@pytest.mark.parametrize(("numbered", "count"), [("test", 1), ("training", 1), ("training", 2)])
def test_leaks_by_name_of_label_numbers_are_not_examined(drawn: Callable[..., Path], numbered: str, count: int) -> None:
    names, numbers = {0: "Ann", 1: "Bob", 2: "Eve"}, {0: "1", 1: "10", 2: "2"}
    test = drawn("test", 1, numbers if numbered == "test" else names)
    training = [drawn(f"training{i}", 2 + i, numbers if numbered == "training" else names) for i in range(count)]
    found = found_in(whole(test), open_dataset(training, join="separate"))
    assert found.by_name is None
    assert found.counts()["any"] == {"images": 0, "identities": 0}


def test_leaks_of_several_test_sets_read_the_training_set_once(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    digests = module._digests

    def counted(shards: list[str], samples: SampleIndex) -> Iterator[bytes | None]:
        read.append(len(samples))
        return digests(shards, samples)

    monkeypatch.setattr(module, "_digests", counted)
    test = whole(sets / "test")
    part = ImageRows(dataset=test.dataset, rows=np.flatnonzero(test.dataset.index.label == 0))
    found = find_leaks({"whole": test, "part": part}, open_dataset(sets / "some"))
    assert sorted(read) == sorted([18, 3, 4])
    assert (found["whole"].by_bytes.sum(), found["part"].by_bytes.sum()) == (4, 1)


def test_leaks_of_some_test_images_are_in_their_order(sets):
    test = whole(sets / "test")
    rows = np.flatnonzero(test.dataset.index.label == 1)[::-1]
    rows = np.append(rows, np.flatnonzero(test.dataset.index.label == 5))
    found = found_in(ImageRows(dataset=test.dataset, rows=rows), open_dataset([sets / "some"]))
    assert found.by_bytes.tolist() == [True] * 3 + [False] * 3


def test_leaks_of_an_unrelated_training_set_are_none(sets):
    assert not found_in(whole(sets / "test"), open_dataset(sets / "other")).by_bytes.any()


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
    unrelated = found_in(whole(sets / "test"), open_dataset(sets / "other"))
    leaks = add_by_embedding(unrelated, test, embeddings, above=0.95)
    assert np.flatnonzero(leaks.leaked & leaks.by_embedding).tolist() == [2, 7]
    examples = leaks.examples([f"t{row}" for row in range(18)])
    assert {(each["test"], each["training"]) for each in examples} == {("t2", "k10"), ("t7", "k11")}
    assert examples[0]["cosine"] >= examples[1]["cosine"] > 0.95
