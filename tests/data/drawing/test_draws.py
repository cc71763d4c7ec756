"""Random draws of the parameters of drawn faces: truncated, by odds, and between colours."""

import numpy as np
import pytest

from rayface.data.drawing.draws import CLOTH, SKIN, mix, muted, normal, pick, ramp


def test_mix_of_two_colours_lies_between_them() -> None:
    a, b = np.array((0.0, 100.0, 200.0)), np.array((100.0, 100.0, 0.0))
    assert mix(a, b, 0.0).tolist() == a.tolist()
    assert mix(a, b, 0.25).tolist() == [25, 100, 150]
    assert mix(a, 255.0, 1.0).tolist() == [255] * 3


def test_normal_of_many_draws_is_truncated_at_two_deviations() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([normal(rng, 10, 3) for _ in range(2000)])
    assert drawn.min() == 4
    assert drawn.max() == 16
    assert drawn.mean() == pytest.approx(10, abs=0.3)


@pytest.mark.parametrize("odds", [(0.5, 0.3, 0.2), (1.0,), (0.0, 1.0)])
def test_pick_of_many_draws_follows_the_odds(odds: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount([pick(rng, odds) for _ in range(3000)], minlength=len(odds)) / 3000
    np.testing.assert_allclose(counts, odds, atol=0.03)
    assert len(counts) == len(odds)


@pytest.mark.parametrize("end", [0.5, 1.0])
def test_ramp_without_jitter_stays_between_its_first_colours(end: float) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([ramp(rng, SKIN, 0.0, end) for _ in range(500)])
    last = mix(SKIN[2], SKIN[3], 0.5) if end == 0.5 else SKIN[5]
    assert (drawn <= SKIN[0] + 1e-9).all()
    assert (drawn >= last - 1e-9).all()
    np.testing.assert_allclose(drawn.min(0), last, atol=3)


def test_ramp_with_jitter_stays_a_colour() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([ramp(rng, SKIN, 80.0) for _ in range(500)])
    assert drawn.min() == 8
    assert drawn.max() == 255


def test_muted_colours_keep_their_brightness_and_lose_half_of_their_colour() -> None:
    found = muted(CLOTH)
    np.testing.assert_allclose(found.mean(1), CLOTH.mean(1))
    np.testing.assert_allclose(np.ptp(found, axis=1), np.ptp(CLOTH, axis=1) / 2)
