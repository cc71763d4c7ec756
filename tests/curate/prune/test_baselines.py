"""Chance and herding keep what they are asked to, and herding follows the mean."""

import itertools
from typing import Any

import numpy as np
import pytest

from rayface.curate.prune.baselines import herding, quotas, random


def test_quotas_add_up_and_are_fair() -> None:
    """Each within one face of its share, none vanishes, none has more than it has."""
    sizes = np.random.default_rng(0).geometric(0.1, 3000)
    for keep in (0.2, 0.6, 0.93, 1.0):
        for min_images in (1, 5):
            count = quotas(sizes, keep, min_images)
            least = np.minimum(sizes, min_images)
            assert count.sum() == max(round(keep * sizes.sum()), least.sum())
            assert ((least <= count) & (count <= sizes)).all()
            free = count > least
            if free.any():
                shares = count[free] / sizes[free]
                assert (abs(count[free] - np.median(shares) * sizes[free]) < 1.5 + 0.02 * sizes[free]).all()
    assert quotas(np.array([3, 0, 2]), 0.01, 2).tolist() == [2, 0, 2]


def test_random_is_seeded_and_keeps_the_share_of_every_identity() -> None:
    """Another seed, another draw."""
    labels = np.repeat(np.arange(100), 20)
    quota = quotas(np.full(100, 20), 0.6)
    found = random(labels, quota, seed=3)
    assert found.kept.reshape(100, 20).sum(axis=1).tolist() == [12] * 100
    assert all((a == b).all() for a, b in zip(found, random(labels, quota, seed=3), strict=True))
    assert (found.kept != random(labels, quota, seed=4).kept).any()
    assert (random(labels[400:600], quota[20:30], seed=3).kept == found.kept[400:600]).all()  # whoever else is there
    assert abs(found.score.mean() - 0.5) < 0.02
    assert len(np.unique(found.score)) > 1990
    assert (found.suppressed_by == -1).all()
    kept, dropped = found.score[:20][found.kept[:20]], found.score[:20][~found.kept[:20]]
    assert kept.min() > dropped.max()
    few = quotas(np.full(100, 20), 0.05, min_images=3)
    assert random(labels, few).kept.reshape(100, 20).sum(axis=1).tolist() == [3] * 100


def test_herding_is_its_definition(drawn: Any) -> None:
    """Against the greedy choice written out: the next face is the one that brings the mean closest."""
    embeddings, offsets = drawn([1, 2, 5, 9, 14], size=16)
    found = herding(embeddings, offsets, quotas(np.diff(offsets), 0.6), block_bytes=1)
    for first, last in itertools.pairwise(offsets):
        faces = embeddings[first:last].astype(np.float64)
        faces /= np.linalg.norm(faces, axis=1, keepdims=True)
        chosen: list[int] = []
        for k in range(1, int(found.kept[first:last].sum()) + 1):
            total = faces[chosen].sum(axis=0)
            far = [np.linalg.norm(faces.mean(axis=0) - (total + face) / k).round(9) for face in faces]
            chosen.append(min(set(range(len(faces))) - set(chosen), key=lambda face: (far[face], face)))
        assert np.argsort(-found.score[first:last], kind="stable")[: len(chosen)].tolist() == chosen
        assert np.flatnonzero(found.kept[first:last]).tolist() == sorted(chosen)


def test_herding_does_not_depend_on_batches(drawn: Any) -> None:
    """Nor on anything but its input."""
    embeddings, offsets = drawn(np.random.default_rng(0).geometric(0.1, 100), dtype=np.float16)
    quota = quotas(np.diff(offsets), 0.6, min_images=2)
    whole = herding(embeddings, offsets, quota)
    parts = herding(embeddings, offsets, quota, block_bytes=30_000)
    assert all((a == b).all() for a, b in zip(whole, parts, strict=True))
    assert whole.kept.sum() == round(0.6 * len(embeddings))


def test_herding_deals_a_very_large_identity_out(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Face i to part i mod 4; each part follows the identity's mean with its share of the quota, like that mean."""
    monkeypatch.setattr("rayface.curate.prune.baselines.LARGEST", 100)
    embeddings, offsets = drawn([7, 390, 30], size=16)
    quota = np.array([4, 235, 11])
    found = herding(embeddings, offsets, quota)
    assert [int(found.kept[a:b].sum()) for a, b in itertools.pairwise(offsets)] == quota.tolist()
    faces = embeddings[7:397].astype(np.float64)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    mean = faces.mean(axis=0)
    for part, share in enumerate([59, 59, 59, 58]):
        rows, total = np.arange(part, 390, 4), np.zeros(16)
        left = rows.tolist()
        for k in range(1, share + 1):
            worth = np.round(faces[left] @ (k * mean - total), 10)
            total += faces[left.pop(int(worth.argmax()))]
        assert np.flatnonzero(found.kept[7:397] & np.isin(np.arange(390), rows)).tolist() == sorted({*rows} - {*left})
    far = np.linalg.norm(faces[found.kept[7:397]].mean(axis=0) - mean)
    monkeypatch.setattr("rayface.curate.prune.baselines.LARGEST", 1000)
    whole = herding(embeddings, offsets, quota)
    assert (whole.kept[:7] == found.kept[:7]).all()
    assert (whole.kept[397:] == found.kept[397:]).all()
    by_chance = np.random.default_rng(0).permutation(390)[:235]
    assert far < 0.5 * np.linalg.norm(faces[by_chance].mean(axis=0) - mean)


@pytest.mark.parametrize("keep", [0, -1, 1.5, np.nan])
def test_keep_is_a_share(keep: float) -> None:
    """In (0, 1]."""
    with pytest.raises(ValueError, match=r"^keep .* above 0 and at most 1"):
        quotas(np.array([4]), keep)


def test_bad_input_gets_one_line() -> None:
    """As for Face-NMS."""
    with pytest.raises(ValueError, match=r"^embeddings row 1: all zeros"):
        herding([[1.0, 0.0], [0.0, 0.0]], [0, 2], np.array([1]))
    with pytest.raises(ValueError, match=r"^min_images 0"):
        quotas(np.array([4]), 0.5, min_images=0)
    with pytest.raises(ValueError, match=r"^offsets: must rise"):
        herding(np.ones((4, 3)), [0, 4, 3], np.array([1, 1]))
