"""What a person wears, and what gets in the way of the camera."""

import numpy as np

from rayface.data.drawing.canvas import RIM, SIDES, Canvas, curve, ellipse, mirrored
from rayface.data.drawing.draws import mix
from rayface.data.drawing.hair import volume
from rayface.data.drawing.portrait import Identity
from rayface.data.drawing.view import View


def glasses(canvas: Canvas, f: Identity, view: View) -> None:
    """Draw the person's own glasses, or borrowed ones."""
    if view.outfit.glasses == "none":
        return
    own = f.frame.worn
    shape, size = (f.frame.shape, f.frame.size) if own else (view.cover.place[0], 1.0)
    frame, width = (f.frame.colour, 1.6) if own else (view.outfit.hat_colour * 0.4, 1.2)
    rx, ry = 12.0 * size, (8.5 + 3 * shape) * size
    centre = max(f.eyes.spacing, rx + 2)
    unit = ellipse(0, 0, 1, 1, 24)
    rim = np.sign(unit) * np.abs(unit) ** (0.45 + 0.5 * shape) * (rx, ry)  # from rectangular to round
    shine = np.array([(-6.0, -3.0), (-1.0, -5.0)])
    for side in SIDES:
        lens = rim + np.array((side * centre, 1))
        if view.outfit.glasses == "dark":
            canvas.fill(lens, np.array((30, 30, 36.0)), 3.0)
            canvas.stroke(shine + np.array((side * centre, 0)), np.array((130, 136, 150.0)), 1.2, 3.0)
        canvas.stroke(np.concatenate([lens, lens[:1]]), frame, width, 3.0)
        temple = np.array([(side * (centre + rx), -2), (side * (f.shape.cheek + 1), -3)])
        canvas.stroke(temple, frame, width, np.array((1.0, RIM - 4)))
    gap = centre - rx
    canvas.stroke(curve(np.array([(-gap, 0), (0, -1.6), (gap, 0)])), frame, width, 5.0)


def hat(canvas: Canvas, f: Identity, view: View) -> None:
    """Draw a knitted hat, a cap or a headband."""
    if view.outfit.hat == "none":
        return
    low = -24.0 - 3 * view.cover.place[2]
    width = f.shape.temple + 4 + 0.5 * volume(f, view)
    colour, shade = view.outfit.hat_colour, view.outfit.hat_colour * 0.78
    canvas.shade(ellipse(0, low + 3, width * 0.8, 4), (0.8, 0.76, 0.76), -10.0)
    if view.outfit.hat == "band":
        band = np.array(
            [
                (0, low - 13),
                (width * 0.6, low - 11),
                (width, low - 6),
                (width, low + 3),
                (width * 0.6, low - 3),
                (0, low - 4),
            ]
        )
        canvas.fill(curve(mirrored(band), closed=True), colour, -13.0)
        return
    dome = np.array([(0, -82), (width * 0.6, -74), (width, -50), (width, low), (0, low - 4)])
    canvas.fill(curve(mirrored(dome), closed=True), colour, -16.0)
    if view.outfit.hat == "cap":
        brim = [(0, low - 9), (width * 0.8, low - 4), (width * 0.92, low + 5), (0, low + 3)]
        canvas.fill(curve(mirrored(np.array(brim)), closed=True), shade, 6.0)
        return
    brim = [(0, low - 12), (width, low - 9), (width + 1.5, low + 1), (0, low - 1)]
    canvas.fill(curve(mirrored(np.array(brim)), closed=True), shade, -13.0)
    rib = np.linspace(-0.85, 0.85, 9)[:, None] * width
    ribs = np.stack([np.hstack([rib, np.full_like(rib, low - 9)]), np.hstack([rib, np.full_like(rib, low - 1)])], 1)
    canvas.stroke(ribs, colour * 0.66, 0.6, -12.0)


def cover(canvas: Canvas, f: Identity, view: View) -> None:
    """Draw a hand, a bar or a mask before the face."""
    if view.cover.kind == "mask":
        _mask(canvas, f, view)
    elif view.cover.kind == "bar":
        _bar(canvas, view)
    elif view.cover.kind == "hand":
        _hand(canvas, f, view)


def _mask(canvas: Canvas, f: Identity, view: View) -> None:
    cloth = mix(view.outfit.cloth, 235.0, 0.6)
    right = np.array(
        [
            (0, 12),
            (14, 15),
            (f.shape.cheek, 18),
            (f.shape.jaw + 1, 40),
            (f.shape.chin_width, f.shape.chin + 1),
            (0, f.shape.chin + 2),
        ]
    )
    canvas.fill(curve(mirrored(right), closed=True), cloth, 0.0)
    for y in (30, 38, 46):
        canvas.stroke(curve(np.array([(-20, y - 1), (0, y + 1), (20, y - 1)])), cloth * 0.86, 0.8)
    for side in SIDES:
        canvas.stroke(np.array([(side * f.shape.cheek * 0.9, 19), (side * (f.shape.cheek + 1), 4)]), cloth, 0.9, RIM)


def _bar(canvas: Canvas, view: View) -> None:
    """Draw a pole or a railing between the camera and the face."""
    u, v, w = view.cover.place
    centre, angle = np.array((20 + 72 * u, 20 + 80 * v)), np.pi * w
    along = np.array((np.cos(angle), np.sin(angle))) * 100
    across = np.array((-np.sin(angle), np.cos(angle))) * 6
    for edge, tone in ((1.0, 0.7), (0.5, 1.0)):
        corners = [-along - across, along - across, along + edge * across, -along + edge * across]
        canvas.plain(np.stack(corners) + centre, view.outfit.hat_colour * tone)


def _hand(canvas: Canvas, f: Identity, view: View) -> None:
    """Draw fingers laid on a cheek or on the mouth."""
    u, v, w = view.cover.place
    side = -1.0 if u < 0.5 else 1.0
    angle = 0.25 + 0.9 * v
    along = np.array((-side * np.sin(angle), -np.cos(angle)))
    across = np.array((np.cos(angle), -side * np.sin(angle))) * 7.4
    base = np.array((side * (34 - 14 * w), 66))
    for tone, width in ((0.66, 8.4), (0.93, 7.0)):
        for k, length in enumerate((32, 37, 36, 28)):
            root = base + (k - 1.5) * across
            canvas.stroke(np.array([root, root + along * length]), f.shape.skin * tone, width, 12.0)
