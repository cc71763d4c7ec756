"""Shapes of drawn faces: smooth curves, mirrored outlines, and where they fall on the canvas."""

from dataclasses import replace

import numpy as np
import pytest

from rayface.data.drawing import sample_view
from rayface.data.drawing.canvas import Canvas, both, curve, ellipse, mirrored
from rayface.data.drawing.view import Pose, View

RED = np.array((255.0, 0.0, 0.0))


@pytest.fixture
def straight() -> View:
    """A view straight ahead, neither turned nor scaled."""
    pose = Pose(yaw=0.0, pitch=0.0, roll=0.0, scale=1.0, shift=np.zeros(2))
    return replace(sample_view(0, 0, 0), pose=pose)


@pytest.mark.parametrize("closed", [False, True])
def test_curve_through_points_passes_through_every_one(closed: bool) -> None:
    points = np.random.default_rng(0).uniform(-30, 30, (6, 2))
    found = curve(points, closed=closed, steps=5)
    assert len(found) == (30 if closed else 26)
    np.testing.assert_allclose(found[::5][:6], points, atol=1e-9)
    several = curve(np.stack([points, -points]), closed=closed, steps=5)
    np.testing.assert_allclose(several[1], -found)


def test_mirrored_outline_and_both_are_symmetric() -> None:
    right = np.array([(0.0, -10.0), (8.0, 0.0), (5.0, 9.0), (0.0, 12.0)])
    outline = mirrored(right)
    assert len(outline) == 6
    assert {(-x, y) for x, y in outline.tolist()} == {(x, y) for x, y in outline.tolist()}
    assert both(right)[1].tolist() == [[-x, y] for x, y in right.tolist()]


def test_ellipse_has_its_center_and_radii() -> None:
    points = ellipse(3, -2, 5, 7, 40)
    np.testing.assert_allclose(points.mean(0), (3, -2), atol=1e-9)
    np.testing.assert_allclose(np.ptp(points, axis=0), (10, 14), atol=1e-9)


def test_project_of_a_straight_view_keeps_coordinates_about_the_eye_point(straight: View) -> None:
    canvas = Canvas(straight, 112)
    np.testing.assert_allclose(canvas.project(np.array([(0.0, 0.0), (10.0, 20.0)]), 0.0), [(56, 51.5), (66, 71.5)])


def test_project_of_a_turned_head_moves_near_points_more_than_far_ones(straight: View) -> None:
    turned = replace(straight, pose=replace(straight.pose, yaw=0.4))
    near, far = (Canvas(turned, 112).project(np.zeros((1, 2)), depth)[0, 0] for depth in (12.0, -12.0))
    assert near > 56 > far
    assert near - 56 == pytest.approx(56 - far)


def test_project_without_a_depth_lets_the_cheeks_recede(straight: View) -> None:
    canvas = Canvas(replace(straight, pose=replace(straight.pose, yaw=0.4)), 112)
    points = np.array([(0.0, 0.0), (38.0, 0.0), (-38.0, 0.0)])
    np.testing.assert_allclose(canvas.project(points), canvas.project(points, np.array([0.0, -16.0, -16.0])))


@pytest.mark.parametrize("size", [56, 112])
def test_fill_of_a_shape_covers_its_area_at_any_size(straight: View, size: int) -> None:
    canvas = Canvas(straight, size)
    square = np.array([(-10.0, -10.0), (10.0, -10.0), (10.0, 10.0), (-10.0, 10.0)])
    canvas.fill(square, RED, 0.0)
    covered = (canvas.layer[..., 3] > 127).mean()
    assert covered == pytest.approx((20 / 112) ** 2, rel=0.2)
    rows, columns = np.nonzero(canvas.layer[..., 3] > 127)
    assert columns.mean() / (2 * size) == pytest.approx(56 / 112, abs=0.01)
    assert rows.mean() / (2 * size) == pytest.approx(51.5 / 112, abs=0.01)
    assert canvas.layer[rows[0] + 2, int(columns.mean())].tolist() == [255, 0, 0, 255]


def test_stroke_and_plain_draw_on_the_layer_and_shade_only_on_the_shadow(straight: View) -> None:
    canvas = Canvas(straight, 56)
    canvas.shade(ellipse(0, 0, 20, 20), (0.5, 0.5, 0.5), 0.0)
    assert not canvas.layer.any()
    assert int(canvas.shadow.min()) in range(125, 131)
    assert canvas.shadow[0, 0].tolist() == [255, 255, 255]
    canvas.stroke(np.array([(-20.0, 0.0), (20.0, 0.0)]), RED, 2.0, 0.0)
    stroked = int((canvas.layer[..., 3] > 0).sum())
    canvas.plain(np.array([(0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0)]), RED)
    assert 0 < stroked < int((canvas.layer[..., 3] > 0).sum())
    assert canvas.layer[2, 2, 3] == 255  # in crop pixels, not in coordinates of the face
