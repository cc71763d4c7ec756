"""Herding keeps the share it is asked for and follows the mean."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayface.curate.prune.methods.herding import LARGEST, Herding, herding
from rayface.curate.prune.methods.quota import quotas


def test_herding_of_small_identities_is_its_definition(drawn: Any) -> None:
    """The greedy choice written out: the next image is the one that brings the mean closest."""
    embeddings, offsets = drawn([1, 2, 5, 9, 14], size=16)
    found = herding(embeddings, offsets, quotas(np.diff(offsets), 0.6), block_bytes=1)
    for first, last in itertools.pairwise(offsets):
        images = embeddings[first:last].astype(np.float64)
        images /= np.linalg.norm(images, axis=1, keepdims=True)
        chosen: list[int] = []
        for k in range(1, int(found.kept[first:last].sum()) + 1):
            total = images[chosen].sum(axis=0)
            far = [np.linalg.norm(images.mean(axis=0) - (total + image) / k).round(9) for image in images]
            chosen.append(min(set(range(len(images))) - set(chosen), key=lambda image: (far[image], image)))
        assert np.argsort(-found.score[first:last], kind="stable")[: len(chosen)].tolist() == chosen
        assert np.flatnonzero(found.kept[first:last]).tolist() == sorted(chosen)


def test_herding_in_small_batches_keeps_the_same_images(drawn: Any) -> None:
    """The selection depends on the images alone."""
    embeddings, offsets = drawn(np.random.default_rng(0).geometric(0.1, 100), dtype=np.float16)
    quota = quotas(np.diff(offsets), 0.6, min_images=2)
    whole = herding(embeddings, offsets, quota)
    parts = herding(embeddings, offsets, quota, block_bytes=30_000)
    assert all((a == b).all() for a, b in zip(whole, parts, strict=True))
    assert whole.kept.sum() == round(0.6 * len(embeddings))


def test_herding_of_a_very_large_identity_splits_it_into_parts(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image i to part i mod 4; each part follows the identity's mean with its share of the quota, like that mean."""
    monkeypatch.setattr("rayface.curate.prune.methods.herding.LARGEST", 100)
    embeddings, offsets = drawn([7, 390, 30], size=16)
    quota = np.array([4, 235, 11])
    found = herding(embeddings, offsets, quota)
    assert [int(found.kept[a:b].sum()) for a, b in itertools.pairwise(offsets)] == quota.tolist()
    images = embeddings[7:397].astype(np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    mean = images.mean(axis=0)
    for part, share in enumerate([59, 59, 59, 58]):
        rows, total = np.arange(part, 390, 4), np.zeros(16)
        left = rows.tolist()
        for k in range(1, share + 1):
            worth = np.round(images[left] @ (k * mean - total), 10)
            total += images[left.pop(int(worth.argmax()))]
        assert np.flatnonzero(found.kept[7:397] & np.isin(np.arange(390), rows)).tolist() == sorted({*rows} - {*left})
    far = np.linalg.norm(images[found.kept[7:397]].mean(axis=0) - mean)
    monkeypatch.setattr("rayface.curate.prune.methods.herding.LARGEST", 1000)
    whole = herding(embeddings, offsets, quota)
    assert (whole.kept[:7] == found.kept[:7]).all()
    assert (whole.kept[397:] == found.kept[397:]).all()
    by_chance = np.random.default_rng(0).permutation(390)[:235]
    assert far < 0.5 * np.linalg.norm(images[by_chance].mean(axis=0) - mean)


def test_compared_in_part_counts_the_identities_that_are_split() -> None:
    assert Herding(keep=0.5).compared_in_part(np.array([1, LARGEST, LARGEST + 1]), Path("unused")) == 1


def test_herding_of_bad_input_raises_one_line() -> None:
    with pytest.raises(ValueError, match=r"^embeddings row 1: all zeros"):
        herding([[1.0, 0.0], [0.0, 0.0]], [0, 2], np.array([1]))
    with pytest.raises(ValueError, match=r"^offsets: must rise"):
        herding(np.ones((4, 3)), [0, 4, 3], np.array([1, 1]))
