"""The parts of a drawn face: the outline of the head, and what age, beard and expression change."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayface.data.drawing import Identity, View, sample_identity, sample_view
from rayface.data.drawing.canvas import Canvas
from rayface.data.drawing.features import draw, head_outline
from rayface.data.drawing.portrait import BEARDS


def drawn(identity: Identity, view: View) -> np.ndarray:
    canvas = Canvas(view, 56)
    draw(canvas, identity, view)
    return canvas.layer.astype(int)


def difference(one: tuple[Identity, View], other: tuple[Identity, View]) -> float:
    return float(np.abs(drawn(*one) - drawn(*other)).mean())


@pytest.fixture
def face() -> tuple[Identity, View]:
    """A bare face, without beard, glasses, hat and cover."""
    identity, view = sample_identity(0, 1), sample_view(0, 1, 0)
    identity = replace(identity, hair=replace(identity.hair, beard="none", style="buzz", fringe=0.0))
    view = replace(
        view,
        outfit=replace(view.outfit, glasses="none", hat="none"),
        cover=replace(view.cover, kind="none"),
        expression=replace(view.expression, mouth_open=0.0, eyes_open=1.0),
    )
    return identity, view


def test_head_outline_of_any_person_is_symmetric_from_crown_to_chin() -> None:
    for number in range(20):
        identity = sample_identity(0, number)
        outline = head_outline(identity)
        assert outline.shape == (72, 2)
        np.testing.assert_allclose(np.sort(outline[:, 0]), np.sort(-outline[:, 0]), atol=1e-9)
        assert outline[:, 1].min() == pytest.approx(-identity.shape.crown, abs=1.5)
        assert outline[:, 1].max() == pytest.approx(identity.shape.chin, abs=1.5)


@pytest.mark.parametrize("beard", [beard for beard in BEARDS if beard not in ("none", "stubble")])
def test_draw_with_a_beard_changes_the_lower_half_alone(face: Any, beard: str) -> None:
    identity, view = face
    with_beard = replace(identity, hair=replace(identity.hair, beard=beard))
    changed = np.abs(drawn(identity, view) - drawn(with_beard, view)).sum(-1)
    assert changed[60:].mean() > 1
    assert not changed[:40].any()


def test_draw_with_an_open_mouth_closed_eyes_or_age_changes_the_image(face: Any) -> None:
    identity, view = face
    for changes in ({"mouth_open": 5.0}, {"eyes_open": 0.05}, {"smile": 6.0}):
        other = replace(view, expression=replace(view.expression, **changes))
        assert difference(face, (identity, other)) > 0.05, changes
    young, old = (replace(identity, marks=replace(identity.marks, age=age)) for age in (0.0, 1.0))
    assert difference((young, view), (old, view)) > 0.05


def test_draw_with_freckles_and_moles_shows_them(face: Any) -> None:
    identity, view = face
    bare = replace(identity, marks=replace(identity.marks, freckles=np.zeros((0, 2)), moles=np.zeros((0, 2))))
    for name in ("freckles", "moles"):
        marked = replace(bare, marks=replace(bare.marks, **{name: np.array([(15.0, 18.0), (-14.0, 20.0)])}))
        assert difference((bare, view), (marked, view)) > 0
