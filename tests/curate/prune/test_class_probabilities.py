"""True-class probabilities against a softmax in float64; computed once for all partitions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayface.curate.partitions import read_partition
from rayface.curate.prune import class_probabilities as module
from rayface.curate.prune.class_probabilities import true_class_probabilities
from rayface.curate.prune.comparison import compare
from rayface.curate.prune.methods.diffprob import DiffProb, diffprob_for_keep
from rayface.curate.prune.methods.face_nms import FaceNMS
from rayface.curate.prune.methods.random import Random
from rayface.curate.prune.selection import Selector
from rayface.models import saved_centers
from rayface.models.saved_centers import SavedCenters

SIZE = 8
MakeSelector = Callable[..., Selector]


def test_probabilities_in_uneven_blocks_are_a_softmax_of_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    centers, labels = random.standard_normal((37, 16)), random.integers(0, 37, 50)
    embeddings = (centers[labels] + random.standard_normal((50, 16))) * random.choice([0.1, 1, 9], (50, 1))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (embeddings, centers)]
    logits = 20 * unit[0] @ unit[1].T
    expected = np.exp(logits[np.arange(50), labels]) / np.exp(logits).sum(axis=1)
    read = torch.from_numpy(centers)
    for rows, classes in ((1024, 8192), (7, 10)):
        monkeypatch.setattr(module, "_ROWS", rows)
        monkeypatch.setattr(module, "_CLASSES", classes)
        found = true_class_probabilities(lambda a, b: read[a:b], 37, embeddings, labels, scale=20)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_probabilities_close_to_one_differ_as_in_float64() -> None:
    """Of a converged model most are: a softmax in float32 has steps of 6e-8 there, and its logits of 4e-6."""
    random = np.random.default_rng(0)
    centers, labels = np.linalg.qr(random.standard_normal((64, 64)))[0], np.arange(64)
    embeddings = 0.6 * centers + 0.08 * random.standard_normal((64, 64))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    logits = 64 * unit @ centers.T
    remainder = np.exp(np.where(np.eye(64), -np.inf, logits)).sum(axis=1) / np.exp(logits).sum(axis=1)
    assert np.median(remainder) < 1e-9
    read = torch.from_numpy(centers)
    found = true_class_probabilities(lambda a, b: read[a:b], 64, embeddings, labels, scale=64)
    np.testing.assert_allclose(1 - found, remainder, rtol=1e-3, atol=2e-16)


def test_probabilities_of_bad_input_raise_one_line() -> None:
    centers = torch.eye(3)
    with pytest.raises(ValueError, match=r"^labels from 0 to 3: must be below 3"):
        true_class_probabilities(lambda a, b: centers[a:b], 3, np.eye(3), [0, 1, 3])
    with pytest.raises(ValueError, match=r"^scale 0: must be above 0"):
        true_class_probabilities(lambda a, b: centers[a:b], 3, np.eye(3), [0, 1, 2], scale=0)


def test_probabilities_of_a_whole_job_are_computed_once_and_centers_read_once(
    make_selector: MakeSelector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Search, decisions and comparison share them; the selection equals that of all images at once."""
    sizes = np.random.default_rng(1).geometric(0.1, 40)
    centers = torch.from_numpy(np.random.default_rng(2).standard_normal((40, SIZE)).astype(np.float32))
    read: list[tuple[int, int]] = []
    computed: list[int] = []

    def rows(first: int, last: int) -> torch.Tensor:
        read.append((first, last))
        return centers[first:last]

    def probabilities(*arguments: Any, **options: Any) -> Any:
        computed.append(len(arguments[2]))
        return true_class_probabilities(*arguments, **options)

    saved = SavedCenters(num_classes=40, width=SIZE, read=rows)
    monkeypatch.setattr(saved_centers, "saved_centers", lambda run: saved)
    monkeypatch.setattr(module, "true_class_probabilities", probabilities)
    mine = make_selector(sizes, 60)
    method = mine.fit(DiffProb(min_images=2, head=str(tmp_path / "run"), scale=8.0), 0.6)
    kept = mine.decide(method)
    core_set = FaceNMS(threshold=0.5)
    mine.decide(core_set)
    compared = compare(mine, core_set, {"diffprob": method, "random": Random(keep=0.6)})
    assert len(computed) > 3
    assert sum(computed) == sum(sizes)
    assert read == [(0, 40)]
    everything = [read_partition(partition) for partition in mine.stats.partitions.partitions]
    vectors = np.concatenate([part.embeddings for part, _ in everything])
    labels = np.concatenate([part.labels for part, _ in everything])
    own = true_class_probabilities(lambda first, last: centers[first:last], 40, vectors, labels, scale=8.0)
    found, _ = diffprob_for_keep(own, np.r_[0, np.cumsum(sizes)], 0.6, min_images=2)
    decided = np.concatenate([table["kept"].to_numpy() for table in mine.decisions(method)])
    assert abs(kept / sum(sizes) - 0.6) <= 0.005
    assert (decided == found.kept).mean() > 0.98  # another threshold that keeps as many
    assert compared.baselines["diffprob"].faces == kept
    assert not list((tmp_path / "decisions").glob("*/centers.npy"))


def test_centers_of_another_length_raise_one_line(
    make_selector: MakeSelector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = SavedCenters(num_classes=9, width=4, read=lambda first, last: torch.ones(last - first, 4))
    monkeypatch.setattr(saved_centers, "saved_centers", lambda run: saved)
    method = DiffProb(threshold=0.1, head=str(tmp_path / "run"), scale=8.0)
    with pytest.raises(ValueError, match=r"prune.head: .*run: its class centers are of length 4, the embeddings of 8"):
        make_selector([3] * 9, 20).decide(method)
