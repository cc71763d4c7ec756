"""What drawn people wear, and what covers them: each kind draws where it must, none draws nothing."""

from dataclasses import replace

import numpy as np
import pytest

from rayface.data.drawing import Identity, View, extras, sample_identity, sample_view
from rayface.data.drawing.canvas import Canvas
from rayface.data.drawing.view import COVERS, HATS


@pytest.fixture
def person() -> Identity:
    return sample_identity(0, 3)


@pytest.fixture
def view() -> View:
    found = sample_view(0, 3, 0)
    return replace(found, pose=replace(found.pose, yaw=0.0, pitch=0.0, roll=0.0, shift=np.zeros(2)))


def rows_of(draw: object, person: Identity, view: View) -> np.ndarray:
    """Rows of the layer, 0 to 111, on which something is drawn."""
    canvas = Canvas(view, 56)
    draw(canvas, person, view)  # type: ignore[operator]
    return np.flatnonzero((canvas.layer[..., 3] > 0).any(1))


@pytest.mark.parametrize("kind", HATS)
def test_hat_of_every_kind_is_drawn_above_the_eyes(person: Identity, view: View, kind: str) -> None:
    rows = rows_of(extras.hat, person, replace(view, outfit=replace(view.outfit, hat=kind)))
    assert len(rows) == 0 if kind == "none" else rows.max() < 51


def test_hats_of_different_kinds_are_drawn_differently(person: Identity, view: View) -> None:
    drawn, lowest = set(), {}
    for kind in HATS:
        hatted = replace(view, outfit=replace(view.outfit, hat=kind))
        canvas = Canvas(view, 56)
        extras.hat(canvas, person, hatted)
        drawn.add(canvas.layer.tobytes())
        lowest[kind] = rows_of(extras.hat, person, hatted).max(initial=0)
    assert len(drawn) == len(HATS)
    assert max(lowest, key=lambda kind: lowest[kind]) == "cap"  # its brim


@pytest.mark.parametrize("kind", COVERS)
def test_cover_of_every_kind_is_drawn(person: Identity, view: View, kind: str) -> None:
    rows = rows_of(extras.cover, person, replace(view, cover=replace(view.cover, kind=kind)))
    assert (len(rows) > 0) == (kind != "none")
    assert kind != "mask" or rows.min() > 51  # below the eyes but for its straps


@pytest.mark.parametrize("worn", [True, False])
def test_glasses_of_every_kind_are_drawn_at_the_eyes(person: Identity, view: View, worn: bool) -> None:
    person = replace(person, frame=replace(person.frame, worn=worn))
    areas = {}
    for kind in ("none", "clear", "dark"):
        canvas = Canvas(replace(view, outfit=replace(view.outfit, glasses=kind)), 56)
        extras.glasses(canvas, person, replace(view, outfit=replace(view.outfit, glasses=kind)))
        areas[kind] = int((canvas.layer[..., 3] > 0).sum())
        assert kind == "none" or 30 < np.flatnonzero((canvas.layer[..., 3] > 0).any(1)).mean() < 70
    assert areas["none"] == 0 < areas["clear"] < areas["dark"]
