"""Drawn datasets: deterministic, readable, with pairs, and too hard for a comparison of pixels."""

import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rayface.data.dataset import open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.synth import synthesize
from rayface.data.writer import ShardWriter
from rayface.evaluation.verification import ten_fold_accuracy
from rayface.storage import DataError


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def verification_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "set"
    synthesize(folder, identities=40, images_per_identity=8, seed=7, pairs=400, processes=1)
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "pairs.csv").open() as file:
        return list(csv.DictReader(file))


def test_synthesize_with_any_number_of_processes_gives_the_same_bytes(tmp_path):
    for processes in (1, 2):
        synthesize(tmp_path / str(processes), identities=20, images_per_identity=5, pairs=20, processes=processes)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_synthesize_interrupted_at_its_end_leaves_no_dataset_without_pairs(tmp_path, monkeypatch):
    settings = {"identities": 20, "images_per_identity": 2, "image_size": 16, "processes": 1, "pairs": 20}

    def interrupted(writer):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            synthesize(tmp_path / "set", **settings)
    assert len(rows_of(tmp_path / "set")) == 20
    with pytest.raises(DataError, match="the dataset is unfinished"):
        open_dataset(tmp_path / "set")
    synthesize(tmp_path / "set", **settings)
    synthesize(tmp_path / "whole", **settings)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


def test_synthesize_of_a_set_shows_every_image_as_progress(tmp_path, recorder):
    synthesize(tmp_path / "set", identities=3, images_per_identity=2, processes=1)
    advances = [(done, total) for name, done, total in recorder.advances if name == "draw images"]
    assert advances[-1] == (6, 6)


def test_synthesize_writes_a_dataset_that_reads_back(verification_set):
    dataset = open_dataset(verification_set)
    about = dataset.about
    assert (dataset.num_classes, dataset.num_images, about.image_size) == (40, 320, (112, 112))
    assert (about.licence, about.source, about.layout) == ("CC0-1.0", "drawn by rayface synth", "shuffled")
    assert dataset.identities[7] == "identity-000007"
    assert not dataset.faults
    samples = read_samples([shard.path for shard in dataset.shards], dataset.index)
    assert sorted(s.key for s in samples) == [f"{i:06d}_{k:04d}" for i in range(40) for k in range(8)]
    assert all(int(s.key[:6]) == s.label for s in samples)
    assert simplejpeg.decode_jpeg(samples[0].jpeg).shape == (112, 112, 3)


def test_synthesize_shuffles_over_the_whole_set(verification_set):
    labels = open_dataset(verification_set).index.label
    assert len(set(labels[:40].tolist())) > 20
    assert (np.diff(labels) == 0).mean() < 0.1


def test_synthesize_with_a_shard_size_keeps_it(tmp_path):
    dataset = synthesize(tmp_path / "set", identities=6, images_per_identity=5, shard_size=6 * 10_240, processes=1)
    assert len(dataset.shards) > 1
    assert all(shard.num_bytes <= 6 * 10_240 for shard in dataset.shards)


def test_synthesize_with_another_seed_draws_other_people(tmp_path):
    a, b = (
        synthesize(tmp_path / str(seed), identities=4, images_per_identity=4, seed=seed, processes=1) for seed in (0, 1)
    )
    assert a.digest != b.digest
    assert a.keys() != b.keys()


def test_synthesize_with_pairs_writes_ten_balanced_disjoint_folds(verification_set):
    rows = rows_of(verification_set)
    assert list(rows[0]) == ["path_a", "path_b", "is_same", "fold"]
    assert [int(row["fold"]) for row in rows] == sorted(list(range(10)) * 40)
    people = {}
    for row in rows:
        a, b = row["path_a"][:6], row["path_b"][:6]
        assert (a == b) == (row["is_same"] == "1")
        people.setdefault(row["fold"], set()).update((a, b))
    assert all(sum(row["is_same"] == "1" for row in rows if row["fold"] == fold) == 20 for fold in people)
    assert all(people[f].isdisjoint(people[g]) for f, g in combinations(people, 2))
    assert len({frozenset((row["path_a"], row["path_b"])) for row in rows}) == len(rows)
    keys = open_dataset(verification_set).keys()
    members = {f"{key}.jpg" for key in keys}
    assert members.issuperset(row[column] for row in rows for column in ("path_a", "path_b"))


def test_verification_by_pixels_is_near_chance(verification_set):
    dataset = open_dataset(verification_set)
    samples = read_samples([shard.path for shard in dataset.shards], dataset.index)
    place = {f"{sample.key}.jpg": row for row, sample in enumerate(samples)}
    pixels = np.stack([simplejpeg.decode_jpeg(sample.jpeg)[::2, ::2].ravel() for sample in samples]).astype(np.float32)
    pixels -= pixels.mean(1, keepdims=True)
    rows = rows_of(verification_set)
    a, b = (pixels[[place[row[column]] for row in rows]] for column in ("path_a", "path_b"))
    accuracy, _ = ten_fold_accuracy(a, b, np.array([row["is_same"] == "1" for row in rows]))
    assert accuracy < 0.70


def test_synthesize_into_a_folder_with_files_is_refused(verification_set):
    before = contents(verification_set)
    with pytest.raises(ValueError, match="set"):
        synthesize(verification_set, identities=2, images_per_identity=2, processes=1)
    assert contents(verification_set) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("identities", 0),
        ("images_per_identity", 0),
        ("seed", -1),
        ("image_size", 113),
        ("image_size", 2),
        ("processes", 0),
        ("pairs", 30),
        ("pairs", 20_000),
    ],
)
def test_synthesize_with_arguments_out_of_range_writes_nothing(tmp_path, field, value):
    arguments = {"identities": 20, "images_per_identity": 4} | {field: value}
    with pytest.raises(ValueError, match=rf"^{field} {value}: [^\n]+$"):
        synthesize(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()
