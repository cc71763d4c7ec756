"""The threshold for a share is searched on a sample and holds for all images."""

from typing import Any

import numpy as np
import pytest

from rayface.curate.face_nms import suppress_many
from rayface.curate.prune import keep_ratio
from rayface.curate.prune.keep_ratio import search_threshold, threshold_for_keep


@pytest.mark.parametrize("keep", [0.35, 0.6, 0.9, 1.0])
def test_threshold_for_keep_keeps_the_share_within_half_a_point(drawn: Any, keep: float) -> None:
    """Searched on 1,000 of 6,000 images; an identity of 600 may be left out of the sample."""
    sizes = np.r_[600, np.random.default_rng(0).geometric(0.06, 320)]
    embeddings, offsets = drawn(sizes, size=32, dtype=np.float16)
    threshold, share = threshold_for_keep(embeddings, offsets, keep, sample_images=1000)
    kept = suppress_many(embeddings, offsets, threshold).kept.mean()
    assert kept == share
    assert abs(kept - keep) <= 0.005
    assert (threshold, share) == threshold_for_keep(embeddings, offsets, keep, sample_images=1000)


@pytest.mark.parametrize("seed", range(20))
def test_sample_beside_a_very_large_identity_leaves_it_out(drawn: Any, seed: int) -> None:
    """Identities of more than a tenth of the sample are left out; without others, all images are searched."""
    embeddings, offsets = drawn([2000, *[10] * 200], size=8, seed=1)
    values, bounds = keep_ratio._sample(embeddings, offsets, 500, seed)
    assert np.diff(bounds).tolist() == [10] * (len(bounds) - 1)
    assert 500 <= len(values) == bounds[-1] <= 510
    values, bounds = keep_ratio._sample(embeddings[:2000], offsets[:2], 500, seed)
    assert len(values) == bounds[-1] == 2000


def test_threshold_for_keep_with_min_images_keeps_the_share(drawn: Any) -> None:
    """The share counts the images that min_images brings back."""
    embeddings, offsets = drawn(np.full(100, 20), size=32)
    threshold, share = threshold_for_keep(embeddings, offsets, 0.6, min_images=10)
    assert suppress_many(embeddings, offsets, threshold, min_images=10).kept.mean() == share
    assert abs(share - 0.6) <= 0.005


def test_search_threshold_on_a_biased_sample_corrects_it() -> None:
    """All images are scored a few times only; if the sample is of no use, they are searched."""
    looks = []

    def of_all(threshold: float) -> float:
        looks.append(threshold)
        return (threshold + 1) / 2

    threshold, share = search_threshold(0.6, lambda t: min(1.0, (t + 1) / 2 + 0.1), of_all, num_images=1000)
    assert abs(share - 0.6) <= 0.005
    assert threshold == pytest.approx(0.2, abs=0.02)
    assert len(looks) == 2
    assert abs(search_threshold(0.6, lambda t: 0.3, of_all, num_images=1000)[1] - 0.6) <= 0.005


@pytest.mark.parametrize(("num_images", "keep", "kept"), [(23, 0.6, 14), (23, 0.61, 14), (7, 0.5, 4), (2, 0.75, 2)])
def test_threshold_for_keep_of_few_images_keeps_the_nearest_number(
    drawn: Any, num_images: int, keep: float, kept: int
) -> None:
    """No share of few images is within half a point; 3.5 of 7 images may be 3 or 4."""
    embeddings, offsets = drawn([num_images], size=16)
    threshold, share = threshold_for_keep(embeddings, offsets, keep)
    assert abs(num_images * share - kept) < 1e-9 or (num_images * keep % 1 == 0.5 and num_images * share == kept - 1)
    assert suppress_many(embeddings, offsets, threshold).kept.mean() == share


def test_threshold_for_keep_of_an_unreachable_share_raises_one_line(drawn: Any) -> None:
    """Fewer images than identities, or copies, of which all or one remain."""
    embeddings, offsets = drawn(np.full(50, 4))
    with pytest.raises(ValueError, match=r"^keep 0\.1: no threshold .*, threshold \S+ keeps 0\.2500: ask for that"):
        threshold_for_keep(embeddings, offsets, 0.1)
    with pytest.raises(ValueError, match=r"^keep 0\.5: no threshold"):
        threshold_for_keep(
            np.tile(np.eye(3), (1, 10)).reshape(30, 3)[np.repeat(np.arange(3), 10)], [0, 10, 20, 30], 0.5
        )
    with pytest.raises(ValueError, match=r"^keep 0: must be above 0"):
        threshold_for_keep(embeddings, offsets, 0)
    with pytest.raises(ValueError, match="no images"):
        threshold_for_keep(np.zeros((0, 4)), [0], 0.5)
