"""Quotas of identities: they add up to the share and are fair."""

import numpy as np
import pyarrow as pa
import pytest

from rayface.config import PruneConfig
from rayface.curate.prune.methods.quota import Quotas, quotas, wanted_share
from rayface.curate.prune.selection_method import Images


def test_quotas_of_many_identities_add_up_and_are_fair() -> None:
    """Each is within one image of its share, at least one, and at most the size of the identity."""
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


def test_quotas_round_up_where_most_would_be_cut() -> None:
    # 4 of 7 images, the nearest to half of them: 1.71 of 3 and 2.29 of 4.
    assert quotas(np.array([3, 4]), 0.5).tolist() == [2, 2]


def test_quotas_below_the_minimum_are_the_minimum() -> None:
    assert quotas(np.full(10, 3), 0.4, 2).tolist() == [2] * 10


def test_quotas_of_images_are_those_of_their_labels() -> None:
    images = Images(
        keys=pa.array(["a", "b", "c"]),
        labels=np.array([7, 7, 9]),
        embeddings=np.ones((3, 2)),
        offsets=np.array([0, 2, 3]),
        part=0,
        rows=np.arange(3),
    )
    assert Quotas(labels=np.array([5, 7, 8, 9]), counts=np.array([1, 2, 3, 4])).of(images).tolist() == [2, 4]


@pytest.mark.parametrize("keep", [0, -1, 1.5, np.nan])
def test_quotas_of_no_share_raise(keep: float) -> None:
    """A share lies in (0, 1]."""
    with pytest.raises(ValueError, match=r"^keep .* above 0 and at most 1"):
        quotas(np.array([4]), keep)


def test_quotas_without_a_minimum_raise() -> None:
    with pytest.raises(ValueError, match=r"^min_images 0"):
        quotas(np.array([4]), 0.5, min_images=0)


def test_wanted_share_with_a_threshold_raises() -> None:
    with pytest.raises(ValueError, match=r"^prune.threshold: herding has no threshold: set prune.keep"):
        wanted_share(PruneConfig(method="herding", threshold=0.5))
