"""Hair, from the locks behind the neck to the fringe."""

import numpy as np

from rayface.data.drawing.canvas import Canvas, curve
from rayface.data.drawing.draws import Array, mix
from rayface.data.drawing.portrait import Identity
from rayface.data.drawing.view import View

_VOLUME = {"bald": 0.0, "buzz": 0.8, "short": 4.5, "swept": 7.0, "curly": 10.0, "bob": 6.0, "long": 5.0}
_LENGTH = {"curly": 14.0, "bob": 44.0, "long": 96.0}


def volume(f: Identity, view: View) -> float:
    """Return how far the hair stands off the head."""
    return _VOLUME[f.hair.style] * f.hair.volume * (1 + 0.12 * view.outfit.hair_drift[1])


def back(canvas: Canvas, f: Identity, view: View) -> None:
    """Draw the hair behind the head and neck."""
    if f.hair.style not in _LENGTH:
        return
    length = _LENGTH[f.hair.style] + 4 * view.outfit.hair_drift[2]
    side = f.shape.cheek + 4 + 0.7 * volume(f, view)
    flare = 4.0 if f.hair.style == "long" else -2.0
    right = np.array([(side + flare / 2, length * 0.5), (side + flare, length * 0.85), (side * 0.7, length + 5)])
    ends = curve(np.concatenate([right, right[::-1] * (-1, 1)]), steps=4)
    canvas.fill(np.concatenate([_arc(f, volume(f, view) + 2, 4.0, view), ends]), f.hair.colour * 0.7, -30.0)


def front(canvas: Canvas, f: Identity, view: View) -> None:
    """Draw the hair on top of the head, its locks and its shadow on the forehead."""
    if f.hair.style == "bald":
        return
    line = _hairline(f, view)
    if f.hair.style == "buzz":
        canvas.fill(
            np.concatenate([_arc(f, volume(f, view), -10.0, view), line]), mix(f.hair.colour, f.shape.skin, 0.3), -17.0
        )
        return
    arc = _arc(f, volume(f, view), -4.0 if f.hair.style != "curly" else 6.0, view)
    inner = line
    if f.hair.style in ("bob", "long"):
        bottom = _LENGTH[f.hair.style] - 14 + 3 * view.outfit.hair_drift[2]
        panel = np.array(
            [
                (f.shape.cheek + 4.5, 6),
                (f.shape.cheek + 5, bottom * 0.7),
                (f.shape.cheek + 0.5, bottom),
                (f.shape.cheek - 3, bottom * 0.6),
            ]
        )
        panel = curve(panel, steps=5)
        inner = np.concatenate([panel, line, panel[::-1] * (-1, 1)])
    z = np.concatenate([np.full(len(arc), -22.0), np.full(len(inner), -15.0)])
    canvas.fill(np.concatenate([arc, inner]), f.hair.colour, z)
    canvas.shade(line[2:-2] + np.array((0.0, 2.5)), (0.86, 0.82, 0.8), -12.0)
    _locks(canvas, f, arc, line)


def _arc(f: Identity, volume: float, bottom: float, view: View) -> Array:
    """Return the outer edge of the hair from the left side over the crown to the right, (57, 2)."""
    angle = np.linspace(0, np.pi, 57)
    cos, sin = np.cos(angle), np.sin(angle)
    x = -(f.shape.temple + 1.5 + 0.8 * volume) * np.sign(cos) * np.abs(cos) ** 0.8
    y = bottom - (bottom + f.shape.crown + volume) * sin**0.85
    if f.hair.style == "curly":
        bump = 2.6 * np.abs(np.sin(angle * f.hair.curls + view.outfit.hair_drift[0]))
        x, y = x - bump * cos, y - bump * sin
    return np.stack([x, y], 1)


def _hairline(f: Identity, view: View) -> Array:
    """Return the inner edge of the hair from the right sideburn over the forehead to the left, (n, 2)."""
    drift = 0.8 * view.outfit.hair_drift[3]
    if f.hair.fringe:
        low = 17 + 7 * (1 - f.hair.fringe) + drift
        x = np.linspace(27, -27, 15)
        teeth = np.stack([x, -low - 2.0 * (np.arange(15) % 2) - 0.008 * x * x], 1)
        right = np.array([(f.shape.temple + 1, 6), (f.shape.temple - 2.5, -8)])
        return np.concatenate([right, teeth, right[::-1] * (-1, 1)])
    h, r, part = f.hair.hairline + drift, f.hair.recession, f.hair.part * 16
    lift = 9.0 if f.hair.style == "swept" else 2.0
    corner = f.shape.temple - 9 - 0.5 * r
    points = np.array(
        [
            (f.shape.temple + 1.5, 8),
            (f.shape.temple - 2.5, 0),
            (f.shape.temple - 4, -16),
            (corner, -h + 7 - r - lift * max(f.hair.part, 0)),
            (part + 8, -h - 1 - 0.3 * r),
            (part, -h + 2 - 0.3 * lift),
            (part - 8, -h - 1 - 0.3 * r),
            (-corner, -h + 7 - r + lift * min(f.hair.part, 0)),
            (-f.shape.temple + 4, -16),
            (-f.shape.temple + 2.5, 0),
            (-f.shape.temple - 1.5, 8),
        ]
    )
    return curve(points, steps=4)


def _locks(canvas: Canvas, f: Identity, arc: Array, line: Array) -> None:
    """Draw locks from the hairline to the outer edge, lighter and darker by turns."""
    inner = line[:: max(1, len(line) // 15)]
    outer = arc[np.linspace(len(arc) - 1, 0, len(inner)).astype(int)]
    middle = (inner + outer) / 2 + np.array((3 * f.hair.part, -1.0))
    if f.hair.style == "curly":
        middle = middle + np.where(np.arange(len(inner)) % 2, 4, -4)[:, None]
    locks = curve(np.stack([inner * 0.96 + outer * 0.04, middle, outer * 0.93 + inner * 0.07], 1), steps=3)
    for k, tone in enumerate((1.2, 0.78, 1.08)):
        group = locks[k::3]
        depth = np.tile(np.linspace(-15.0, -22.0, group.shape[1]), len(group))  # as in `front`
        canvas.stroke(group, f.hair.colour * tone + (tone > 1) * 7, 0.8, depth)
