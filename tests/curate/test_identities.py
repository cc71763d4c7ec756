"""Batches of identities of similar size, and the checks that selection methods share."""

import numpy as np
import pytest

from rayface.curate.identities import batches, check_keep, check_min_images


def test_batches_of_any_sizes_hold_every_image_once() -> None:
    sizes = np.r_[0, 400, np.random.default_rng(0).geometric(0.1, 300), 0]
    offsets = np.r_[0, np.cumsum(sizes)]
    found = list(batches(offsets, np.arange(len(sizes)), lambda width: 4 * width**2, 20_000))
    assert np.sort(np.concatenate([b.identities for b in found])).tolist() == np.flatnonzero(sizes).tolist()
    assert np.sort(np.concatenate([b.rows[b.valid] for b in found])).tolist() == list(range(offsets[-1]))
    for batch in found:
        own = sizes[batch.identities]
        assert batch.valid.sum(axis=1).tolist() == own.tolist()
        assert own.max() <= batch.rows.shape[1] < own.max() + 8  # padded to a multiple of eight
        assert own.min() >= 0.75 * own.max()
        assert (batch.rows[:, -1] == offsets[batch.identities + 1] - 1).all()  # the last image, repeated
        assert len(own) == 1 or 4 * batch.rows.shape[1] ** 2 * len(own) <= 20_000
    assert [batch.rows.shape[1] for batch in found] == sorted((b.rows.shape[1] for b in found), reverse=True)


def test_batches_of_some_identities_leave_out_the_others() -> None:
    offsets = np.array([0, 3, 6, 9])
    (batch,) = batches(offsets, np.array([2, 0]), lambda width: 1, 1000)
    assert sorted(batch.identities.tolist()) == [0, 2]
    assert list(batches(offsets, np.zeros(0, np.int64), lambda width: 1, 1000)) == []


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_check_keep_of_no_share_is_refused(keep: float) -> None:
    check_keep(1)
    with pytest.raises(ValueError, match=rf"^keep {keep}: must be above 0 and at most 1"):
        check_keep(keep)


def test_check_min_images_below_one_is_refused() -> None:
    check_min_images(1)
    with pytest.raises(ValueError, match=r"^min_images 0: must be at least 1, because no identity is dropped$"):
        check_min_images(0)
