"""DiffProb against its definition, and true-class probabilities against a softmax in float64."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayface.curate.prune import diffprob as module
from rayface.curate.prune.diffprob import diffprob, diffprob_for_keep, true_class_probabilities


def one_by_one(values: Any, threshold: float, min_images: int) -> tuple[set[int], dict[int, int]]:
    """The definition, for one identity: (kept, {dropped: the last kept one before it})."""
    order = sorted(range(len(values)), key=lambda face: (-values[face], face))
    kept, by = [order[0]], {}
    for face in order[1:]:
        if abs(values[face] - values[kept[-1]]) > threshold:
            kept.append(face)
        else:
            by[face] = kept[-1]
    for face in order:
        if face in by and len(kept) < min_images:
            kept.append(face)
            del by[face]
    return set(kept), by


@pytest.mark.parametrize("threshold", [-1, 0, 0.003, 0.05, 0.4, 1])
def test_diffprob_is_its_definition(threshold: float) -> None:
    """Sizes from none to many, ties among them."""
    random = np.random.default_rng(0)
    sizes = np.r_[0, 1, 2, random.integers(1, 40, 60), 0]
    offsets = np.r_[0, np.cumsum(sizes)]
    values = np.round(random.beta(4, 1, offsets[-1]), 3)
    for min_images in (1, 5):
        found = diffprob(values, offsets, threshold, min_images=min_images)
        for first, last in itertools.pairwise(offsets.tolist()):
            if last > first:
                kept, by = one_by_one(values[first:last], threshold, min_images)
                assert set(np.flatnonzero(found.kept[first:last]).tolist()) == kept
                expected = [by[k] + first if k in by else -1 for k in range(last - first)]
                assert found.suppressed_by[first:last].tolist() == expected
    assert found.score.dtype == np.float32


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95, 1.0])
def test_keeps_the_share_that_is_asked_for(keep: float) -> None:
    """Though a sure classifier leaves tiny differences."""
    random = np.random.default_rng(1)
    offsets = np.arange(0, 40_001, 20)
    values = 1 - 10 ** -random.uniform(0, 9, 40_000)
    found, threshold = diffprob_for_keep(values, offsets, keep, min_images=2)
    assert found.kept.mean() == pytest.approx(keep, abs=0.005)
    assert (found.kept == diffprob(values, offsets, threshold, min_images=2).kept).all()


def test_probabilities_are_a_softmax_of_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, all at once; in blocks of rows and classes that do not fit evenly."""
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


def test_reads_the_centers_of_a_checkpoint(tmp_path: Path) -> None:
    """Part by part, as they were saved."""
    from rayface.training.checkpointing import checkpoint
    from rayface.training.checkpointing.checkpoint import RowShard
    from rayface.training.checkpointing.progress import Progress
    from rayface.training.checkpointing.tools import saved_centers

    centers = torch.randn(9, 4)
    state = {"head.centers": RowShard.of(centers, 0, 9)}
    checkpoint.save(tmp_path, state, Progress(step=1), keep=1)
    saved = saved_centers(tmp_path)
    assert (saved.num_classes, saved.width) == (9, 4)
    assert torch.equal(saved.read(2, 7), centers[2:7])


def test_bad_input_gets_one_line() -> None:
    """Named, with the rule."""
    with pytest.raises(ValueError, match=r"^probabilities shape \(3,\): must be \(4,\)"):
        diffprob([0.1, 0.2, 0.3], [0, 4], 0.1)
    with pytest.raises(ValueError, match=r"^probabilities: must be from 0 to 1"):
        diffprob([0.1, np.nan], [0, 2], 0.1)
    with pytest.raises(ValueError, match=r"^keep 0: must be"):
        diffprob_for_keep([0.1], [0, 1], 0)
    centers = torch.eye(3)
    with pytest.raises(ValueError, match=r"^labels from 0 to 3: must be below 3"):
        true_class_probabilities(lambda a, b: centers[a:b], 3, np.eye(3), [0, 1, 3])
    with pytest.raises(ValueError, match=r"^scale 0: must be above 0"):
        true_class_probabilities(lambda a, b: centers[a:b], 3, np.eye(3), [0, 1, 2], scale=0)
