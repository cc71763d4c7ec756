"""Hair of drawn faces: every style covers its part of the head."""

from dataclasses import replace

import numpy as np
import pytest

from rayface.data.drawing import Identity, View, hair, sample_identity, sample_view
from rayface.data.drawing.canvas import Canvas
from rayface.data.drawing.portrait import HAIR_STYLES


@pytest.fixture
def view() -> View:
    found = sample_view(0, 2, 0)
    pose = replace(found.pose, yaw=0.0, pitch=0.0, roll=0.0, shift=np.zeros(2))
    return replace(found, pose=pose, outfit=replace(found.outfit, hair_drift=np.zeros(4)))


def styled(style: str, **changes: float) -> Identity:
    identity = sample_identity(0, 2)
    return replace(identity, hair=replace(identity.hair, style=style, fringe=0.0, **changes))


def covered(identity: Identity, view: View, *parts: str) -> np.ndarray:
    """Which pixels of the layer these parts of the hair cover."""
    canvas = Canvas(view, 56)
    for part in parts:
        getattr(hair, part)(canvas, identity, view)
    return canvas.layer[..., 3] > 0


@pytest.mark.parametrize("style", HAIR_STYLES)
def test_hair_of_every_style_covers_the_crown_unless_it_is_bald(view: View, style: str) -> None:
    found = covered(styled(style), view, "back", "front")
    assert found[:30].any() == (style != "bald")
    assert covered(styled(style), view, "back").any() == (style in ("curly", "bob", "long"))


def test_long_hair_reaches_further_down_than_a_bob(view: View) -> None:
    lowest = [np.flatnonzero(covered(styled(style), view, "back").any(1)).max() for style in ("curly", "bob", "long")]
    assert lowest == sorted(lowest)
    assert lowest[0] < lowest[2]


def test_volume_of_hair_grows_with_the_person_and_is_none_of_a_bald_head(view: View) -> None:
    flat, full = (hair.volume(styled("swept", volume=amount), view) for amount in (0.5, 1.5))
    assert full == pytest.approx(3 * flat)
    assert hair.volume(styled("bald"), view) == 0
    assert (
        covered(styled("swept", volume=1.5), view, "front").sum()
        > covered(styled("swept", volume=0.5), view, "front").sum()
    )


def test_fringe_lowers_the_hairline(view: View) -> None:
    short = styled("short")
    with_fringe = replace(short, hair=replace(short.hair, fringe=1.0))
    middle = slice(50, 62)
    lowest = [np.flatnonzero(covered(each, view, "front")[:, middle].any(1)).max() for each in (short, with_fringe)]
    assert lowest[1] > lowest[0]
