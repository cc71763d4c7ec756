"""Parameters of one image of a drawn person: in their ranges, and as often as they are meant to be."""

from dataclasses import replace

import numpy as np
import pytest

from rayface.data.drawing import Identity, View, sample_identity
from rayface.data.drawing.view import COVERS, HATS


def views(identity: Identity, count: int = 500) -> list[View]:
    return [View.sample(np.random.default_rng(seed), identity) for seed in range(count)]


@pytest.fixture(scope="module")
def sampled() -> list[View]:
    return views(sample_identity(0, 0))


def test_view_of_a_seed_repeats_and_of_another_differs(sampled: list[View]) -> None:
    again = View.sample(np.random.default_rng(3), sample_identity(0, 0))
    assert again.pose.yaw == sampled[3].pose.yaw
    assert np.array_equal(again.backdrop.blobs, sampled[3].backdrop.blobs)
    assert len({view.camera.noise for view in sampled}) == len(sampled)


def test_views_of_many_seeds_have_every_hat_and_cover_at_their_odds(sampled: list[View]) -> None:
    assert {view.outfit.hat for view in sampled} == set(HATS)
    assert {view.cover.kind for view in sampled} == set(COVERS)
    assert np.mean([view.cover.kind == "none" for view in sampled]) == pytest.approx(0.87, abs=0.05)
    assert np.mean([view.outfit.hat == "none" for view in sampled]) == pytest.approx(0.84, abs=0.05)


@pytest.mark.parametrize(("worn", "share"), [(True, 0.8), (False, 0.05)])
def test_views_of_a_person_with_glasses_mostly_show_them(worn: bool, share: float) -> None:
    identity = sample_identity(0, 0)
    found = views(replace(identity, frame=replace(identity.frame, worn=worn)))
    assert np.mean([view.outfit.glasses != "none" for view in found]) == pytest.approx(share, abs=0.06)


def test_views_of_many_seeds_stay_in_their_ranges(sampled: list[View]) -> None:
    for view in sampled:
        assert np.linalg.norm(view.light.direction) == pytest.approx(1)
        assert view.light.direction[2] > 0  # never from behind
        assert abs(view.pose.yaw) <= 0.54
        assert 0.85 <= view.pose.scale <= 1.05
        assert np.abs(view.expression.gaze).max() <= 1
        assert 0.05 <= view.expression.eyes_open <= 1.15
        assert view.expression.mouth_open >= 0
        assert 72 <= view.camera.quality < 96
        assert view.camera.blur >= 0
        assert view.backdrop.blobs.shape[1] == 6
        assert 0 <= view.backdrop.blobs[:, :3].min() <= view.backdrop.blobs[:, :3].max() <= 1
