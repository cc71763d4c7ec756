"""Benchmarks made from a labelled dataset: held-out identities, lists, and the training set without them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from rayface.data.dataset import open_dataset
from rayface.data.synth import synthesize
from rayface.embedding.part_file import write_part
from rayface.evaluation import benchmark
from rayface.evaluation.benchmark import BenchmarkSettings, make_benchmark
from rayface.evaluation.pairs import load_pairs

SMALL = {"identities": 20, "pairs": 80, "folds": 4, "template_size": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "set"
    synthesize(folder, identities=30, images_per_identity=4, image_size=16, processes=1)
    return folder


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def keys_by_identity(folder):
    dataset = open_dataset(folder)
    return {
        key: dataset.identities[label] for key, label in zip(dataset.keys(), dataset.index.label.tolist(), strict=True)
    }


def test_benchmark_holds_out_identities_and_leaves_the_rest_to_train_on(source, tmp_path):
    made = make_benchmark(source, tmp_path / "out", BenchmarkSettings(**SMALL))
    test, train = keys_by_identity(tmp_path / "out" / "test"), keys_by_identity(tmp_path / "out" / "train")
    assert {**test, **train} == keys_by_identity(source)
    assert (len(set(test.values())), len(set(train.values()))) == (20, 10)
    assert not set(test.values()) & set(train.values())
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == json.loads(json.dumps(made.as_dict()))
    assert (made.test.identities, made.train.images, made.pairs["impostor"]) == (20, 40, 40)
    assert "20 held-out identities" in (tmp_path / "out" / "README.md").read_text()


def test_lists_of_a_benchmark_name_images_of_the_test_set(source, tmp_path):
    make_benchmark(str(source), str(tmp_path / "out"), BenchmarkSettings(**SMALL))
    out, people = tmp_path / "out", keys_by_identity(tmp_path / "out" / "test")
    pairs = rows_of(out / "pairs.csv")
    assert len(pairs) == 80
    for pair in pairs:
        a, b = (people[pair[name].removesuffix(".jpg")] for name in ("path_a", "path_b"))
        assert (a == b) == (pair["is_same"] == "1")
    loaded = load_pairs(out / "pairs.csv", out / "test", image_size=16)
    assert (len(loaded.a), loaded.is_same.sum()) == (80, 40)
    templates = {}
    for row in rows_of(out / "templates.csv"):
        templates.setdefault(row["template"], set()).add(people[row["path"].removesuffix(".jpg")])
    listed = [rows_of(out / name) for name in ("gallery_1.csv", "gallery_2.csv", "probes.csv")]
    for row in (row for rows in listed for row in rows):
        assert templates[row["template"]] == {row["identity"]}
    assert [len(rows) for rows in listed] == [10, 10, 20]
    for row in rows_of(out / "template_pairs.csv"):
        assert (templates[row["template_a"]] == templates[row["template_b"]]) == (row["is_same"] == "1")


def test_benchmark_of_a_seed_is_written_the_same_again(source, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_benchmark(str(source), str(tmp_path / name), BenchmarkSettings(**SMALL, seed=seed))
    content = {name: [(tmp_path / name / f).read_bytes() for f in ("pairs.csv", "probes.csv")] for name in "abc"}
    assert content["a"] == content["b"] != content["c"]


def test_benchmark_with_embeddings_lists_the_look_alikes_and_no_image_without_an_embedding(source, tmp_path, caplog):
    people = keys_by_identity(source)
    names = sorted(set(people.values()))
    random = np.random.default_rng(0)
    centers = random.normal(size=(30, 8))
    centers[1::2] = centers[::2] + 0.1 * random.normal(size=(15, 8))  # identities 2 k and 2 k + 1 look alike
    keys = sorted(people)[:-1]
    values = np.stack([centers[names.index(people[key])] + 0.1 * random.normal(size=8) for key in keys])
    embedded = [(keys, np.zeros(len(keys), np.int64), values.astype(np.float32))]
    (tmp_path / "emb").mkdir()
    write_part(str(tmp_path / "emb" / "part.parquet"), embedded, size=8, dtype="fp32", note={})
    settings = BenchmarkSettings(identities=29, pairs=60, folds=2, embeddings=str(tmp_path / "emb"), hard=0.2)
    made = make_benchmark(str(source), str(tmp_path / "out"), settings)
    assert made.pairs["hard_impostor"] == 6
    pairs = rows_of(tmp_path / "out" / "pairs.csv")
    impostors = [
        sorted(names.index(people[pair[name].removesuffix(".jpg")]) for name in ("path_a", "path_b"))
        for pair in pairs
        if pair["is_same"] == "0"
    ]
    assert sum(a // 2 == b // 2 for a, b in impostors) >= 4
    listed = {row["path"] for row in rows_of(tmp_path / "out" / "templates.csv")}
    held_out = keys_by_identity(tmp_path / "out" / "test")
    assert listed == {f"{key}.jpg" for key in held_out if key in keys}
    assert "do not compare it on these pairs" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identities": 30}, "--identities: 30: .* has 30 identities with two images of 30: must be at most 29"),
        ({"identities": 7}, "--identities: 7: must be at least 8, two for each fold"),
        ({"folds": 1}, "--folds: 1: must be at least 2"),
        ({"pairs": 3}, "--pairs: 3: must be at least 8, two for each fold"),
        ({"template_size": 0}, "--template-size: 0: must be at least 1"),
        ({"hard": 1.5}, "--hard: 1.5: must be from 0 to 1"),
        ({"hard": 0.9}, "--hard: 0.9: must be with --embeddings"),
    ],
)
def test_benchmark_with_a_wrong_setting_is_refused_and_writes_nothing(source, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_benchmark(str(source), str(tmp_path / "out"), BenchmarkSettings(**{**SMALL, **changes}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_benchmark_into_a_folder_that_is_not_empty_is_refused(source, tmp_path):
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"OUT: .*: is not empty \(other.txt\): choose another directory"):
        make_benchmark(str(source), str(tmp_path), BenchmarkSettings(**SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]


def test_benchmark_with_embeddings_of_another_dataset_is_refused(source, tmp_path):
    rows = [(["x"], np.zeros(1, np.int64), np.ones((1, 4), np.float32))]
    write_part(str(tmp_path / "emb.parquet"), rows, size=4, dtype="fp32", note={})
    settings = BenchmarkSettings(**SMALL, embeddings=str(tmp_path / "emb.parquet"))
    with pytest.raises(ValueError, match="has 0 of 80 images of the test set: must be of the same dataset"):
        make_benchmark(str(source), str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()


def test_benchmark_that_was_interrupted_starts_over(source, tmp_path, monkeypatch):
    def written(folder):
        make_benchmark(source, folder, BenchmarkSettings(**SMALL))
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    wanted = written(tmp_path / "whole" / "same")
    for stop in range(8):
        steps = iter(range(stop))

        def interrupted(*args, left=steps, write=benchmark.write_bytes):
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(*args)

        with monkeypatch.context() as patched:
            patched.setattr(benchmark, "write_bytes", interrupted)
            with pytest.raises(KeyboardInterrupt):
                written(tmp_path / str(stop) / "same")
        assert written(tmp_path / str(stop) / "same") == wanted
