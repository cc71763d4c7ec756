"""The compiled kernel of Face-NMS: the steps of one identity, and what it leaves in its arguments."""

from typing import Any

import numpy as np
import pytest

from rayface.curate import nms_kernel
from rayface.curate.cosines import unit_rows
from rayface.curate.nms_kernel import suppress_identities


def run(
    values: np.ndarray, offsets: Any, threshold: float, *, bonus: Any = None, min_images: int = 1, block: int = 16
) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """The first row without a direction or -1, and kept, score, suppressed_by; what is not computed is 7."""
    count, size = values.shape
    units = np.zeros((2, block, size), np.int16)
    kept, score, by = np.ones(count, bool), np.full(count, 7, np.float32), np.full(count, 7, np.int64)
    extra = np.zeros(count) if bonus is None else np.asarray(bonus, float)
    settings = (threshold, min_images, 10**6)
    bad = suppress_identities(values, np.asarray(offsets), extra, *settings, units, kept, score, by)
    return bad, kept, score, by


@pytest.mark.parametrize("block", [16, 64])
def test_kernel_in_any_block_drops_by_rank(drawn: Any, block: int) -> None:
    embeddings, _ = drawn([200], size=16)  # 50 kept, in blocks: one of 16 often ends with one row left
    _, kept, score, by = run(embeddings, [0, 200], 0.7, block=block)
    units = unit_rows(embeddings, np.arange(200))
    exact = np.round(1 - units @ units.mean(axis=0), 12)
    np.testing.assert_allclose(score, exact, atol=1e-6)
    order = sorted(range(200), key=lambda row: (-exact[row], row))
    left: list[int] = []
    for row in order:
        first = next((other for other in left if units[other] @ units[row] > 0.7), -1)
        assert by[row] == first
        left += [row] if first == -1 else []
    assert np.flatnonzero(kept).tolist() == sorted(left)


def test_kernel_of_some_identities_leaves_the_others_untouched(drawn: Any) -> None:
    embeddings, offsets = drawn([4, 6, 5], size=8)
    bad, _, score, by = run(embeddings, offsets[1:3], 0.5)
    assert bad == -1
    assert (score[[0, 3, 10, 14]] == 7).all()
    assert (by[[0, 3, 10, 14]] == 7).all()
    assert (score[4:10] != 7).all()
    assert set(by[4:10]) <= {-1, *range(4, 10)}  # rows of all, not of the identity


def test_kernel_with_a_bonus_reads_that_of_its_own_rows(drawn: Any) -> None:
    embeddings, offsets = drawn([5, 5], size=8)
    bonus = np.zeros(10)
    bonus[7] = 3
    _, kept, _, by = run(embeddings, offsets[1:], -0.99, bonus=bonus)
    assert kept[7]
    assert set(by[5:10]) == {-1, 7}


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_kernel_at_a_row_without_a_direction_returns_it(drawn: Any, value: float) -> None:
    embeddings, offsets = drawn([3, 4, 3], size=8)
    embeddings[5] = value
    assert run(embeddings, offsets, 0.5)[0] == 5
    assert run(embeddings, offsets[:2], 0.5)[0] == -1


def test_kernel_with_min_images_brings_back_the_highest_scores() -> None:
    copies = np.tile(np.array([[1, 2]], np.float32), (6, 1))
    _, kept, _, by = run(copies, [0, 6], 0.5, min_images=3)
    assert kept.tolist() == [True] * 3 + [False] * 3
    assert by.tolist() == [-1, -1, -1, 0, 0, 0]


@pytest.mark.parametrize("count", [1, 2, 9, 100, 1000])
def test_sort_of_any_number_of_scores_is_stable_and_falling(count: int) -> None:
    scores = np.random.default_rng(0).integers(0, 20, count).astype(float)
    order = np.empty(count, np.int64)
    nms_kernel._sort(scores, count, order)
    assert order.tolist() == np.argsort(-scores, kind="stable").tolist()


def test_cosine_of_copies_is_never_above_one() -> None:
    values = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    inverse = 1 / np.linalg.norm(values.astype(np.float64), axis=1)
    found = [nms_kernel._cosine(values, inverse, row, row) for row in range(50)]
    assert max(found) <= 1
    assert min(found) > 1 - 1e-12
