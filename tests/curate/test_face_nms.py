"""Face-NMS against a plain double loop, and its limits."""

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rayface.curate.face_nms import sparsity_scores, suppress, suppress_many


def double_loop(embeddings: NDArray[Any], threshold: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """The definition, image by image, in float64: (kept, suppressed_by)."""
    units = [face / np.sqrt((face * face).sum()) for face in embeddings.astype(np.float64)]
    mean = sum(units) / len(units)
    scores = [round(1 - float((face * mean).sum()), 12) for face in units]
    order = sorted(range(len(units)), key=lambda face: (-scores[face], face))
    kept, by = np.ones(len(units), bool), np.full(len(units), -1)
    for place, face in enumerate(order):
        for other in order[place + 1 :]:
            if kept[face] and kept[other] and float((units[face] * units[other]).sum()) > threshold:
                kept[other], by[other] = False, face
    return kept, by


def test_sparsity_scores_of_an_identity_are_one_minus_the_cosine_to_the_mean() -> None:
    """By hand: two right angles, any norm, and a single image."""
    assert sparsity_scores([[2.0, 0.0], [0.0, 5.0]]).tolist() == [0.5, 0.5]
    assert sparsity_scores([[0.0, 3.0]]).tolist() == [0.0]
    assert sparsity_scores(np.zeros((0, 4))).shape == (0,)
    assert sparsity_scores(np.ones((3, 4), np.float16)).dtype == np.float64


def test_sparsity_scores_in_small_blocks_are_equal(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean and the scores are computed block by block."""
    embeddings, _ = drawn([500])
    whole = sparsity_scores(embeddings)
    monkeypatch.setattr("rayface.curate.face_nms._SCORE_ROWS", 37)
    np.testing.assert_allclose(sparsity_scores(embeddings), whole, atol=2e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17, 40, 90])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_suppress_of_any_type_is_the_double_loop(drawn: Any, size: int, dtype: Any) -> None:
    """For several thresholds; identity 0 has a duplicate."""
    embeddings, _ = drawn([size], dtype=dtype, seed=size)
    for threshold in (-0.5, 0.0, 0.4, 0.6, 0.8, 0.999):
        assert suppress(embeddings, threshold).tolist() == double_loop(embeddings, threshold)[0].tolist()


def test_suppress_of_ties_keeps_the_lower_index() -> None:
    """Copies, and the two images of an identity of two, which always tie."""
    assert suppress([[1.0, 2.0]] * 5, 0.9).tolist() == [True, False, False, False, False]
    random = np.random.default_rng(0)
    pairs = random.standard_normal((300, 1, 32)) + 0.1 * random.standard_normal((300, 2, 32))
    found = suppress_many(pairs.reshape(600, 32), np.arange(0, 601, 2), 0.5)
    assert found.kept.tolist() == [True, False] * 300
    assert found.suppressed_by[1::2].tolist() == list(range(0, 600, 2))


def test_suppress_at_a_threshold_of_one_drops_nothing() -> None:
    """The computed cosine of copies may exceed 1 by rounding."""
    embeddings = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    assert suppress(np.concatenate([embeddings, 3 * embeddings]), 1.0).all()


def test_suppress_at_a_cosine_near_the_threshold_decides_in_float64() -> None:
    """The cosines differ from the threshold by less than float32 resolves."""
    random = np.random.default_rng(0)
    threshold, count = 0.6, 400
    axes = np.linalg.qr(random.standard_normal((count, 64, 2)))[0]
    beyond = np.where(random.random(count) < 0.5, 1e-9, -1e-9)
    cosine = threshold + beyond
    second = cosine[:, None] * axes[..., 0] + np.sqrt(1 - cosine**2)[:, None] * axes[..., 1]
    pairs = np.stack([axes[..., 0], second], axis=1).reshape(2 * count, 64)
    found = suppress_many(pairs, np.arange(0, 2 * count + 1, 2), threshold)
    assert found.kept[1::2].tolist() == (beyond < 0).tolist()


def test_suppress_many_equals_suppress_one_by_one(drawn: Any) -> None:
    """2,000 identities, in blocks of two sizes."""
    sizes = np.random.default_rng(1).geometric(0.12, 2000)
    embeddings, offsets = drawn(sizes, size=32, dtype=np.float16)
    parts = list(itertools.pairwise(offsets))
    plain = [double_loop(embeddings[a:b], 0.65) for a, b in parts]
    kept = np.concatenate([part for part, _ in plain])
    by = np.concatenate([np.where(part < 0, -1, part + a) for (_, part), (a, _) in zip(plain, parts, strict=True)])
    assert 0.4 < kept.mean() < 0.8
    assert (np.concatenate([suppress(embeddings[a:b], 0.65) for a, b in parts]) == kept).all()
    for block_bytes in (20_000, 16 * 2**20):
        found = suppress_many(embeddings, offsets, 0.65, block_bytes=block_bytes)
        assert (found.kept == kept).all()
        assert (found.suppressed_by == by).all()


def test_suppress_many_in_tasks_of_one_identity_is_the_same_and_names_the_first_bad_row(
    drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, offsets = drawn([3, 4, 1, 5])
    whole = suppress_many(embeddings, offsets, 0.5)
    monkeypatch.setattr("rayface.curate.face_nms._TASK_WORK", 1)
    parts = suppress_many(embeddings, offsets, 0.5)
    assert all((a == b).all() for a, b in zip(parts, whole, strict=True))
    embeddings[[5, 9]] = 0
    with pytest.raises(ValueError, match=r"^embeddings row 5: all zeros"):
        suppress_many(embeddings, offsets, 0.5)


def test_suppress_many_returns_the_scores(drawn: Any) -> None:
    """They equal sparsity_scores, in float32."""
    embeddings, offsets = drawn([1, 7, 7, 30])
    for block_bytes in (1, 2**20):
        found = suppress_many(embeddings, offsets, 0.5, block_bytes=block_bytes)
        scores = [sparsity_scores(embeddings[a:b]) for a, b in itertools.pairwise(offsets)]
        np.testing.assert_allclose(found.score, np.concatenate(scores), atol=1e-6)
        assert found.score.dtype == np.float32
        assert found.suppressed_by.dtype == np.int64


def test_suppress_many_with_a_bonus_ranks_by_it(drawn: Any) -> None:
    """The image with the bonus ranks first in its identity."""
    embeddings, offsets = drawn([9, 9])
    bonus = np.zeros(18)
    bonus[13] = 2
    found = suppress_many(embeddings, offsets, -0.9, bonus=bonus)
    assert np.flatnonzero(found.kept[9:]).tolist() == [4]
    assert (found.suppressed_by[9:] == [13, 13, 13, 13, -1, 13, 13, 13, 13]).all()
    np.testing.assert_allclose(found.score[9:], sparsity_scores(embeddings[9:]) + bonus[9:], atol=1e-6)
    with pytest.raises(ValueError, match=r"^bonus .* one finite number per image"):
        suppress_many(embeddings, offsets, 0.5, bonus=np.full(18, np.nan))
    with pytest.raises(ValueError, match=r"^bonus shape \(2,\): must be \(18,\)"):
        suppress_many(embeddings, offsets, 0.5, bonus=[0, 1])


def test_suppress_many_run_twice_is_equal(drawn: Any) -> None:
    """Bit by bit, scores included."""
    embeddings, offsets = drawn(np.full(50, 20), dtype=np.float16)
    first, second = (suppress_many(embeddings, offsets, 0.6) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_suppress_many_in_another_order_keeps_the_same_images(drawn: Any) -> None:
    """The selection of an identity does not depend on its neighbours in a batch."""
    embeddings, offsets = drawn([9, 4, 30, 1, 12, 30])
    turned = np.concatenate([embeddings[a:b] for a, b in zip(offsets[-2::-1], offsets[:0:-1], strict=True)])
    found = suppress_many(embeddings, offsets, 0.6).kept
    other = suppress_many(turned, np.r_[0, np.cumsum(np.diff(offsets)[::-1])], 0.6).kept
    expected = np.concatenate([found[a:b] for a, b in zip(offsets[-2::-1], offsets[:0:-1], strict=True)])
    assert (other == expected).all()


@pytest.mark.parametrize("block_bytes", [20_000, 2**20])
def test_suppress_of_very_many_kept_compares_with_the_nearest_in_rank(
    drawn: Any, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """The rule, image by image: compared with the last 300 kept before its block of 512 ranks, and its block."""
    monkeypatch.setattr("rayface.curate.face_nms.MAX_COMPARED", 300)
    embeddings, _ = drawn([3000], size=16)
    units = embeddings.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    order = np.argsort(-sparsity_scores(embeddings), kind="stable")
    stay: list[int] = []
    by = np.full(3000, -1)
    for rank, face in enumerate(order.tolist()):
        if rank % 512 == 0:
            oldest = max(0, len(stay) - 300)
        near = np.flatnonzero(units[stay[oldest:]] @ units[face] > 0.9)
        by[face] = stay[oldest + near[0]] if len(near) else -1
        stay += [] if len(near) else [face]
    found = suppress_many(embeddings, [0, 3000], 0.9, block_bytes=block_bytes)
    assert 1000 < len(stay) < 2900
    assert found.suppressed_by.tolist() == by.tolist()
    monkeypatch.setattr("rayface.curate.face_nms.MAX_COMPARED", 3000)
    assert suppress(embeddings, 0.9).sum() < len(stay)  # so it decides nothing where it does not bind


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_suppress_with_min_images_brings_back_the_highest_scores(drawn: Any, block_bytes: int) -> None:
    """An identity with fewer images keeps all of them."""
    embeddings, offsets = drawn([2, 6, 40])
    found = suppress_many(embeddings, offsets, -0.9, min_images=4, block_bytes=block_bytes)
    counts = [int(found.kept[a:b].sum()) for a, b in itertools.pairwise(offsets)]
    assert counts == [2, 4, 4]
    scores = sparsity_scores(embeddings[8:])
    assert set(np.flatnonzero(found.kept[8:])) == set(np.argsort(-scores, kind="stable")[:4])
    assert (found.suppressed_by[found.kept] == -1).all()


def test_suppress_of_a_large_identity_takes_the_memory_of_a_block(drawn: Any) -> None:
    """Neither four times the images nor more identities take more memory beside the result."""
    peaks, block_bytes = [], 100_000
    for sizes in ([1000], [4000], np.full(400, 10)):
        embeddings, offsets = drawn(sizes, size=32, dtype=np.float16)
        tracemalloc.start()
        suppress_many(embeddings, offsets, 0.8, block_bytes=block_bytes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2 * block_bytes + 4000 * 32  # the pairs of 4000 alone: 8 million


def test_suppress_of_norms_that_float32_cannot_square_is_exact(drawn: Any) -> None:
    """Norms of 1e60 and 1e-60 beside ordinary ones."""
    embeddings, offsets = drawn([12, 12, 12], dtype=np.float64)
    scaled = embeddings * np.repeat([1e60, 1, 1e-60], 12)[:, None]
    expected = suppress_many(embeddings, offsets, 0.6)
    for block_bytes in (1, 2**20):
        assert (suppress_many(scaled, offsets, 0.6, block_bytes=block_bytes).kept == expected.kept).all()


def test_suppress_of_a_read_only_array_reads_it(drawn: Any) -> None:
    """Also a transposed array; the caller's array is not changed."""
    embeddings, _ = drawn([30], dtype=np.float32)
    before, expected = embeddings.copy(), suppress(embeddings, 0.6)
    assert (embeddings == before).all()
    embeddings.flags.writeable = False
    assert (suppress(embeddings, 0.6) == expected).all()
    assert (suppress(np.asfortranarray(embeddings), 0.6) == expected).all()
    assert suppress(np.zeros((0, 8), np.float32), 0.6).shape == (0,)


@pytest.mark.parametrize("block_bytes", [1, 2**20])
@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (np.inf, "NaN or infinity"), (0, "all zeros")])
def test_suppress_of_a_row_without_direction_names_it(drawn: Any, block_bytes: int, value: float, message: str) -> None:
    """In one line, whichever block it is in."""
    for row in (0, 1, 25):
        embeddings, offsets = drawn([1, 3, 40], dtype=np.float16)
        embeddings[row] = value
        with pytest.raises(ValueError, match=rf"^embeddings row {row}: {message}.*leave the image out") as error:
            suppress_many(embeddings, offsets, 0.6, block_bytes=block_bytes)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"row 25: {message}"):
        sparsity_scores(embeddings)


@pytest.mark.parametrize("threshold", [-1, 1.01, np.nan])
def test_suppress_at_a_threshold_that_is_no_cosine_raises(threshold: float) -> None:
    """Thresholds lie in (-1, 1]."""
    with pytest.raises(ValueError, match=r"^threshold .* above -1 and at most 1"):
        suppress(np.ones((2, 4)), threshold)


def test_suppress_of_wrong_shapes_and_settings_raises_one_line() -> None:
    """Each message states the rule."""
    with pytest.raises(ValueError, match=r"^embeddings shape \(4,\): must be"):
        suppress(np.ones(4), 0.5)
    with pytest.raises(ValueError, match=r"^embeddings shape \(2, 3, 4\): must be"):
        sparsity_scores(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"^embeddings dtype <U1: must be numbers"):
        suppress([["a", "b"]], 0.5)
    with pytest.raises(ValueError, match=r"^min_images 0: must be at least 1"):
        suppress(np.ones((2, 4)), 0.5, min_images=0)
    with pytest.raises(ValueError, match=r"^block_bytes 0: must be"):
        suppress_many(np.ones((2, 4)), [0, 2], 0.5, block_bytes=0)
    for offsets in ([0, 3], [1, 2], [0, 2, 1, 2]):
        with pytest.raises(ValueError, match=r"^offsets: must rise from 0 to 2"):
            suppress_many(np.ones((2, 4)), offsets, 0.5)
    with pytest.raises(ValueError, match=r"^offsets shape \(\) dtype"):
        suppress_many(np.ones((2, 4)), 2, 0.5)
