"""Affinity of groups of images: from sums as from all pairs, and its scale."""

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate.affinity import (
    PRIOR_PAIRS,
    RATIO,
    Scale,
    affinity,
    base_cosine,
    cohesion,
    dot,
    pairs_below,
    scale_of,
)


def units(count: int, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((count, 12)) + 0.5
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [2, 9])
def test_cohesion_of_a_sum_is_the_mean_cosine_of_all_pairs_with_the_prior(count: int) -> None:
    x, scale = units(count), scale_of(0.4, 0.1)
    total = x.sum(axis=0)
    pairs = (x @ x.T)[np.triu_indices(count, 1)] - 0.1
    expected = (pairs.sum() + PRIOR_PAIRS * scale.expected) / (len(pairs) + PRIOR_PAIRS)
    assert cohesion(dot(total, total), float(count), scale) == pytest.approx(expected, abs=1e-6)


def test_affinity_of_sums_is_the_mean_cosine_over_the_root_of_cohesions() -> None:
    a, b = units(4), units(7, seed=1)
    scale = Scale(0.1, 0.5, 60.0)
    found = affinity(dot(a.sum(axis=0), b.sum(axis=0)), 28.0, 0.4, 0.9, scale)
    assert found == pytest.approx(((a @ b.T).mean() - 0.1) / 0.6, abs=1e-5)


def test_affinity_of_two_images_reaches_the_ratio_at_the_threshold() -> None:
    scale = scale_of(0.42, 0.1)
    single = cohesion(1.0, 1.0, scale)
    assert affinity(0.42, 1.0, single, single, scale) == pytest.approx(RATIO)


def test_cohesion_with_an_infinite_prior_is_the_expected_one() -> None:
    scale = scale_of(0.4, 0.0, np.inf)
    assert cohesion(50.0, 9.0, scale) == scale.expected


def test_cohesion_of_images_less_alike_than_strangers_is_just_above_zero() -> None:
    assert cohesion(0.0, 100.0, scale_of(0.4, 0.1)) == 1e-6


def test_pairs_below_a_cosine_are_of_two_images() -> None:
    assert pairs_below(np.eye(3), 0.5) == (3, 1.0)
    assert pairs_below(np.eye(3), 0.0) == (0, 0.0)


def test_base_cosine_is_that_of_strangers() -> None:
    x = np.random.default_rng(0).standard_normal((2000, 64)) + 1
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert base_cosine(x) == pytest.approx(0.5, abs=0.03)
    assert base_cosine(x) == base_cosine(x)


def test_base_cosine_of_one_person_leaves_its_pairs_out() -> None:
    same = np.repeat(np.eye(2, 8), [9, 1], axis=0)
    assert base_cosine(same) == 1
    assert base_cosine(same, 0.5) == base_cosine(same, 1.0) == 0
    assert base_cosine(same[:9], 0.5) == 0
    assert base_cosine(same, 0.0) == -1
    assert base_cosine(same[:1], -0.2) < -0.2


@pytest.mark.parametrize("threshold", [0.1, 0.3])
def test_scale_of_a_threshold_not_above_that_of_strangers_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=rf"threshold {threshold:.4f}: must be above 0.3000"):
        scale_of(threshold, 0.3)
