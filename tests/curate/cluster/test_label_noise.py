"""Cleaned labels: planted splits and merges are found, and the estimate of label noise is the planted one."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayface.curate.cluster.label_noise import contradicted, label_noise
from rayface.curate.cluster.metrics import cluster_scores
from rayface.curate.cluster.neighbours import Neighbours, nearest
from tests.curate.cluster.test_cluster import Job, People, job

__all__ = ["job"]  # the fixture


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_contradicted_images_are_about_the_share_of_planted_wrong_labels(people: People, share: float) -> None:
    vectors, labels = people(30, 20, spread=0.6, size=64)
    random = np.random.default_rng(0)
    wrong = random.permutation(len(labels)) < share * len(labels)
    planted = np.where(wrong, (labels + random.integers(1, 30, len(labels))) % 30, labels)
    found = contradicted(nearest(vectors, 40), planted, 0.4)
    assert found.mean() == pytest.approx(share, abs=0.01)
    assert (found == wrong).mean() > 0.98


def test_contradicted_leaves_out_noise() -> None:
    vectors = np.eye(8)[[0, 0, 0, 1, 1]].astype(np.float32)
    found = contradicted(nearest(vectors, 4), np.array([-1, -1, 5, 3, 4]), 0.5)
    assert found.tolist() == [False, False, False, True, True]


def test_label_noise_is_of_the_majority_of_neighbours_and_after_clustering_of_images_in_a_cluster() -> None:
    rows = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    near = Neighbours(rows=rows, cosines=np.full((4, 3), 0.5, np.float32))
    found = label_noise(near, np.array([0, 1, 0, 0]), np.array([0, -1, 0, 1]), 0.5)
    assert (found.before, found.after) == (1 / 4, 1 / 3)  # image 1; image 3
    assert label_noise(near, np.array([0, 1, 0, 0]), np.full(4, -1), 0.5).after == 0


def test_cluster_within_and_merge_undoes_planted_merges_splits_and_wrong_labels(
    job: Job, people: People, put_embeddings: Any, tmp_path: Path
) -> None:
    vectors, persons = people(20, 16, spread=0.6, size=64)
    random = np.random.default_rng(1)
    labels = np.where(persons < 8, persons // 2, persons)  # four labels hold two persons
    halves = random.random(len(labels)) < 0.5
    labels = np.where((persons >= 14) & halves, persons + 100, labels)  # six persons have two labels
    wrong = random.permutation(len(labels)) < 16
    labels[wrong] = persons[random.permutation(np.flatnonzero(wrong))]
    put_embeddings(labels, vectors, "mixed")
    keys = {"embeddings": str(tmp_path / "mixed"), "threshold": 0.4, "within": True}
    scores = []
    for merge in (False, True):
        out = tmp_path / f"out-{merge}"
        result = job(**keys, merge=merge, out=str(out))
        scores.append(cluster_scores(persons, pq.read_table(out / "labels.parquet")["cluster"].to_numpy()))
    given, split, merged = cluster_scores(persons, labels), *scores
    assert given.pairwise_precision < 0.85
    assert split.pairwise_precision > 0.99
    assert split.pairwise_recall < 0.85
    assert min(merged.pairwise_precision, merged.pairwise_recall) > 0.97
    assert result.label_noise is not None
    assert result.label_noise.before > 0.04
    assert result.label_noise.after < 0.01


def test_cluster_merging_without_within_is_refused(job: Job) -> None:
    with pytest.raises(ValueError, match="merge: true: must be with within"):
        job(merge=True)
