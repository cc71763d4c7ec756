"""DiffProb: against its definition, and its settings."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rayface.config import PruneConfig
from rayface.curate.prune.methods.diffprob import DiffProb, diffprob, diffprob_for_keep


def one_by_one(values: Any, threshold: float, min_images: int) -> tuple[set[int], dict[int, int]]:
    """The definition, for one identity: (kept, {dropped: the last kept one before it})."""
    order = sorted(range(len(values)), key=lambda image: (-values[image], image))
    kept, by = [order[0]], {}
    for image in order[1:]:
        if abs(values[image] - values[kept[-1]]) > threshold:
            kept.append(image)
        else:
            by[image] = kept[-1]
    for image in order:
        if image in by and len(kept) < min_images:
            kept.append(image)
            del by[image]
    return set(kept), by


@pytest.mark.parametrize("threshold", [-1, 0, 0.003, 0.05, 0.4, 1])
def test_diffprob_at_any_threshold_is_its_definition(threshold: float) -> None:
    """Identities of any size, with ties."""
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
def test_diffprob_for_keep_of_tiny_differences_keeps_the_share(keep: float) -> None:
    """A confident classifier leaves differences near zero."""
    random = np.random.default_rng(1)
    offsets = np.arange(0, 40_001, 20)
    values = 1 - 10 ** -random.uniform(0, 9, 40_000)
    found, threshold = diffprob_for_keep(values, offsets, keep, min_images=2)
    assert found.kept.mean() == pytest.approx(keep, abs=0.005)
    assert (found.kept == diffprob(values, offsets, threshold, min_images=2).kept).all()


def test_diffprob_of_bad_input_raises_one_line() -> None:
    with pytest.raises(ValueError, match=r"^probabilities shape \(3,\): must be \(4,\)"):
        diffprob([0.1, 0.2, 0.3], [0, 4], 0.1)
    with pytest.raises(ValueError, match=r"^probabilities: must be from 0 to 1"):
        diffprob([0.1, np.nan], [0, 2], 0.1)
    with pytest.raises(ValueError, match=r"^keep 0: must be"):
        diffprob_for_keep([0.1], [0, 1], 0)
    with pytest.raises(ValueError, match="threshold nan"):
        diffprob([0.1], [0, 1], np.nan)
    with pytest.raises(ValueError, match="probabilities: no images"):
        diffprob_for_keep([], [0], 0.5)


def test_diffprob_selects_with_its_threshold_and_minimum() -> None:
    values = np.array([0.9, 0.89, 0.5, 0.88, 0.7, 0.7])
    images: Any = SimpleNamespace(offsets=np.array([0, 4, 6]))
    for min_images in (1, 3):
        method = DiffProb(threshold=0.1, min_images=min_images, head="unused", scale=64.0)
        found = method.select(images, cast(Any, SimpleNamespace(of=lambda images: values)))
        wanted = diffprob(values, images.offsets, 0.1, min_images=min_images)
        assert all((a == b).all() for a, b in zip(found, wanted, strict=True))
        assert found.kept.sum() == {1: 3, 3: 5}[min_images]


def test_diffprob_settings_take_the_scale_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("head:\n  scale: 30\n")
    method = DiffProb.from_settings(PruneConfig(keep=0.5, min_images=2, head=str(tmp_path)))
    assert method == DiffProb(threshold=-1.0, min_images=2, head=str(tmp_path), scale=30.0)
    assert method.at(1).threshold == -1
    assert method.at(-1).threshold == 1


def test_diffprob_settings_without_a_run_directory_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^prune.head: is not set: must be the run"):
        DiffProb.from_settings(PruneConfig(keep=0.5))
    with pytest.raises(ValueError, match=r"^prune.head: .*: is not a run directory"):
        DiffProb.from_settings(PruneConfig(keep=0.5, head=str(tmp_path)))
