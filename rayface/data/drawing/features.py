"""The parts of a drawn face, from back to front."""

import numpy as np

from rayface.data.drawing import extras, hair
from rayface.data.drawing.canvas import DARK, RIM, WHITE, Canvas, both, curve, ellipse, mirrored
from rayface.data.drawing.draws import Array, mix
from rayface.data.drawing.portrait import Identity
from rayface.data.drawing.view import View

NOSE_DEPTH = 12.0


def draw(canvas: Canvas, identity: Identity, view: View) -> None:
    """Draw the whole head with what it wears and what covers it."""
    hair.back(canvas, identity, view)
    _neck(canvas, identity, view)
    _ears(canvas, identity)
    canvas.fill(head_outline(identity), identity.shape.skin, RIM)
    _complexion(canvas, identity)
    _beard(canvas, identity, view)
    _mouth(canvas, identity, view)
    _eyes(canvas, identity, view)
    _nose(canvas, identity, view)
    _age(canvas, identity, view)
    hair.front(canvas, identity, view)
    _brows(canvas, identity, view)
    extras.glasses(canvas, identity, view)
    extras.hat(canvas, identity, view)
    extras.cover(canvas, identity, view)


def head_outline(f: Identity) -> Array:
    """Return the head from crown to chin and back, (72, 2)."""
    right = np.array(
        [
            (0, -f.shape.crown),
            (f.shape.temple * 0.68, -f.shape.crown * 0.87),
            (f.shape.temple, -24),
            (f.shape.cheek, 6),
            (f.shape.jaw, 38),
            (f.shape.chin_width, f.shape.chin - 3),
            (0, f.shape.chin),
        ]
    )
    return curve(mirrored(right), closed=True)


def _neck(canvas: Canvas, f: Identity, view: View) -> None:
    width = f.shape.jaw * 0.82
    neck = np.array([(-width, 30), (-width, 80), (-width - 6, 100), (width + 6, 100), (width, 80), (width, 30)])
    canvas.fill(neck, f.shape.skin * 0.78, -34.0)
    canvas.fill(both(np.array([(width - 4, 74), (62, 84), (80, 120), (4, 104)])), view.outfit.cloth, -36.0)


def _ears(canvas: Canvas, f: Identity) -> None:
    x = f.shape.cheek - 2 + f.shape.ear_out
    canvas.fill(both(ellipse(x, 5, 5.2, f.shape.ear_size)), f.shape.skin * 0.94, RIM - 4)
    inner = np.array([(x, 5 - f.shape.ear_size * 0.6), (x + 2.8, 1), (x + 1.5, 5 + f.shape.ear_size * 0.5)])
    canvas.stroke(both(curve(inner)), f.shape.skin * (0.74, 0.66, 0.62), 1.2, RIM - 4)


def _complexion(canvas: Canvas, f: Identity) -> None:
    """Draw soft shading: sockets, cheeks, jaw, the shadow under the lip, and the marks of the skin."""
    blush = 1 - 0.16 * f.marks.blush
    canvas.shade(both(ellipse(f.eyes.spacing - 2, -2, f.eyes.width + 3, 7)), (0.86, 0.8, 0.78))
    canvas.shade(both(ellipse(23, 22, 9, 7)), (1.0, blush, blush))
    jaw = np.array([(f.shape.cheek, 14), (f.shape.jaw, 38), (f.shape.chin_width, f.shape.chin), (19, 40)])
    canvas.shade(both(jaw), (0.92, 0.88, 0.86), RIM + 4)
    canvas.shade(ellipse(0, f.mouth.height + f.mouth.lower_lip + 5, 8, 2.6), (0.86, 0.82, 0.8), 2.0)
    canvas.shade(ellipse(0, f.mouth.height - 7, 2.2, 3.5), (0.92, 0.88, 0.86), 4.0)
    if len(f.marks.freckles):
        canvas.fill(ellipse(0, 0, 0.65, 0.6, 8) + f.marks.freckles[:, None], f.shape.skin * (0.78, 0.66, 0.58))
    if len(f.marks.moles):
        canvas.fill(ellipse(0, 0, 1.25, 1.2, 10) + f.marks.moles[:, None], mix(f.shape.skin * 0.4, DARK, 0.5))


def _beard(canvas: Canvas, f: Identity, view: View) -> None:
    colour = mix(f.hair.colour * 0.86, f.shape.skin, 0.08)
    y, w, size = f.mouth.height, f.mouth.width, f.hair.beard_size
    if f.hair.beard == "stubble":
        tint = mix(np.ones(3), (colour + 60) / 255, 0.5)
        canvas.shade(_jaw_band(f, y - 9, 1.0), tint, -8.0)
    if f.hair.beard == "full":
        canvas.fill(_jaw_band(f, y - 8, size), colour, -10.0)
        _bristles(canvas, f, colour, 26)
    if f.hair.beard == "goatee":
        right = np.array(
            [
                (0, y + 4),
                (w * 0.8, y + 2),
                (w * 0.9, y + 12),
                (7 * size, f.shape.chin + 1),
                (0, f.shape.chin + 4 * size),
            ]
        )
        canvas.fill(curve(mirrored(right), closed=True), colour, 0.0)
    if f.hair.beard in ("moustache", "goatee", "full"):
        right = np.array(
            [(0, y - 9.5), (w * 0.5, y - 9), (w + 0.5, y - 3 + 2 * size), (w * 0.55, y - 4.5), (0, y - 4.5)]
        )
        canvas.fill(curve(mirrored(right), closed=True), colour * 0.95, 3.0)


def _jaw_band(f: Identity, top: float, size: float) -> Array:
    """Return the outline of a full beard, or of its stubble."""
    y, w = f.mouth.height, f.mouth.width
    outer = [
        (f.shape.cheek + 0.3, 10),
        (f.shape.jaw + 1 + size, 38),
        (f.shape.chin_width + 3 * size, f.shape.chin + 2 * size),
        (0, f.shape.chin + 4 * size),
    ]
    inner = [(0, top + 1), (w * 0.6, top + 0.5), (w + 5, y - 2), (f.shape.jaw - 5, 28), (f.shape.cheek - 4.5, 10)]
    right = curve(np.array(outer), steps=4)
    left = right[::-1] * (-1, 1)
    top_right = curve(np.array(inner), steps=4)
    return np.concatenate([right, left, top_right[::-1] * (-1, 1), top_right])


def _bristles(canvas: Canvas, f: Identity, colour: Array, count: int) -> None:
    x = np.linspace(-0.95, 0.95, count) * f.shape.jaw
    top = f.shape.chin - 6 - 24 * (x / f.shape.jaw) ** 2
    hairs = np.stack([np.stack([x, top], 1), np.stack([x * 0.97, top + 6], 1)], 1)
    for k, tone in enumerate((0.8, 1.18)):
        canvas.stroke(hairs[k::2], colour * tone, 0.6, -6.0)


def _mouth(canvas: Canvas, f: Identity, view: View) -> None:
    smile = f.mouth.rest + view.expression.smile
    y, width, opened = f.mouth.height, f.mouth.width + 0.5 * max(smile, 0), view.expression.mouth_open
    t = np.linspace(-1, 1, 17)
    arch = 1 - t * t
    seam = y - smile * (t * t - 0.35)
    upper = seam - arch**0.8 * f.mouth.upper_lip + f.mouth.lip_bow * np.exp(-((t / 0.16) ** 2)) - opened * 0.25 * arch
    roof = seam - opened * 0.35 * arch
    floor = seam + opened * 1.1 * arch
    lower = floor + arch**0.7 * f.mouth.lower_lip
    x = t * width
    depth = 4.0
    canvas.fill(_between(x, roof, lower), f.mouth.lip, depth)
    canvas.fill(_between(x, upper, np.maximum(roof, upper)), f.mouth.lip * 0.88, depth)
    if opened > 0.5:
        canvas.fill(_between(x, roof, floor), np.array((72, 24, 30.0)), depth)
        canvas.fill(_between(x, roof, np.minimum(floor, roof + 1.9 * arch**0.5)), WHITE * 0.95, depth)
    else:
        canvas.stroke(np.stack([x, seam], 1), mix(f.mouth.lip * 0.5, DARK, 0.3), 0.9, depth)
    shine = np.stack([x[5:12], (floor + arch * f.mouth.lower_lip * 0.45)[5:12]], 1)
    canvas.stroke(shine, mix(f.mouth.lip, 255.0, 0.28), 0.9, depth)
    canvas.fill(both(ellipse(width + 0.4, y - smile * 0.65, 0.9, 0.8, 8)), f.shape.skin * (0.62, 0.5, 0.48), depth)


def _between(x: Array, upper: Array, lower: Array) -> Array:
    """Return the outline of the area between two lines over the same x."""
    return np.stack([np.concatenate([x, x[::-1]]), np.concatenate([upper, lower[::-1]])], 1)


def _lids(f: Identity, view: View) -> tuple[Array, Array, Array]:
    """Return x, upper and lower lid of the right-hand eye from the inner to the outer corner, (15,) each."""
    t = np.linspace(0, 1, 15)
    x = f.eyes.spacing + (t * 2 - 1) * f.eyes.width
    tilt = -(t * 2 - 1) * f.eyes.width * np.sin(f.eyes.tilt)
    opened = view.expression.eyes_open
    upper = tilt - f.eyes.height * np.sin(np.pi * t**0.85) ** 0.9 * opened + (1 - opened) * 0.8
    lower = tilt + f.eyes.height * 0.62 * np.sin(np.pi * t**1.15) * (0.5 + 0.5 * opened)
    return x, np.minimum(upper, lower), lower


def _eyes(canvas: Canvas, f: Identity, view: View) -> None:
    x, upper, lower = _lids(f, view)
    top, bottom = np.stack([x, upper], 1), np.stack([x, lower], 1)
    wing = top[-1:] + f.eyes.lashes * np.array((1.6, -1.3))
    fold = np.stack([x, upper - 1.5 - 1.2 * f.eyes.fold - 0.5 * view.expression.brow_raise], 1)[2:-1]
    tear = ellipse(top[0, 0] + 0.5, top[0, 1] + 0.4, 0.8, 0.7, 8)
    thin, crease = f.shape.skin * (0.66, 0.55, 0.5), f.shape.skin * (0.74, 0.64, 0.6)
    canvas.fill(both(_between(x, upper, lower)), WHITE * 0.96)
    if view.expression.eyes_open > 0.2:
        _irises(canvas, f, view, (x, upper, lower))
    canvas.stroke(both(np.concatenate([top, wing])), mix(DARK, f.hair.colour, 0.2), 0.9 + 0.8 * f.eyes.lashes)
    canvas.stroke(both(bottom[3:]), thin, 0.5)
    canvas.fill(both(tear), f.shape.skin * (0.9, 0.62, 0.6))
    canvas.stroke(both(fold), crease, 0.5 + 0.6 * f.eyes.fold)


def _irises(canvas: Canvas, f: Identity, view: View, lids: tuple[Array, Array, Array]) -> None:
    """Draw iris, pupil and glint, cut off at the lids. Both eyes look the same way and are lit from the same side."""
    x, upper, lower = lids
    look, height, r = view.expression.gaze[0] * 2.4, -0.5 + view.expression.gaze[1] * 1.1, f.eyes.iris_size
    discs = [ellipse(look, height, size, size, 18) for size in (r, 0.8 * r, 0.42 * r)]
    glint = ellipse(look + 1.2 * view.light.direction[0], height - 1.3, 0.95, 0.95, 18)
    points = np.concatenate([*discs, glint])
    points = points + np.array((((f.eyes.spacing, 0.0),), ((-f.eyes.spacing, 0.0),)))  # (2, 72, 2)
    px = np.abs(points[..., 0]).clip(x[0], x[-1])
    points[..., 1] = points[..., 1].clip(np.interp(px, x, upper), np.interp(px, x, lower))
    points[..., 0] = px * np.array(((1.0,), (-1.0,)))
    for k, colour in enumerate((f.eyes.iris * 0.55, f.eyes.iris, DARK * 0.5, WHITE)):
        canvas.fill(points[:, 18 * k : 18 * k + 18], colour)


def _brows(canvas: Canvas, f: Identity, view: View) -> None:
    t = np.linspace(0, 1, 9)
    x = f.brows.inner + t * f.brows.length * 1.75
    tilt = f.brows.tilt + view.expression.frown
    y = -f.brows.height - view.expression.brow_raise + (0.5 - t) * tilt * 18 - np.sin(np.pi * t**1.3) * f.brows.arch
    half = f.brows.thickness * (0.45 + 0.75 * np.sin(np.pi * (0.28 + 0.7 * t)))
    canvas.fill(both(_between(x, y - half, y + half)), mix(f.hair.colour * 0.72, f.shape.skin, 0.12))


def _nose(canvas: Canvas, f: Identity, view: View) -> None:
    length, w, b = f.nose.length, f.nose.width, f.nose.bridge
    dark = f.shape.skin * (0.66, 0.55, 0.5)
    shaded = -1.0 if view.light.direction[0] > 0 else 1.0
    strength = 0.14 + 0.2 * abs(view.light.direction[0])
    depth = np.array((0, 4, NOSE_DEPTH, 2.0))
    flank = np.array(
        [(shaded * b * 0.7, -3), (shaded * b, length * 0.5), (shaded * w, length), (shaded * w * 1.5, length + 3)]
    )
    ridge = np.array([(shaded * 0.5, -3), (shaded * 0.6, length * 0.5), (shaded * 0.8, length + 2), (0, length + 4)])
    outline = np.concatenate([flank, ridge[::-1]])
    canvas.shade(outline, 1 - strength * np.array((0.8, 1, 1.05)), np.concatenate([depth * 0.6, depth[::-1]]))
    bridge = np.array([(-b * 0.4, -1), (b * 0.4, -1), (b * 0.5, length - 3), (-b * 0.5, length - 3)])
    canvas.fill(bridge, mix(f.shape.skin, 255.0, 0.07), np.array((3, 3, 9, 9.0)))
    canvas.fill(ellipse(0, length - 1, w * 0.46, 3 + f.nose.tip), mix(f.shape.skin, 255.0, 0.1), NOSE_DEPTH)
    base = np.array(
        [(-w, length - 2), (-w * 1.02, length + 2), (-w * 0.5, length + 2.4), (0, length + 3.6 + f.nose.tip)]
    )
    base = np.concatenate([base, base[-2::-1] * (-1, 1)])
    canvas.stroke(curve(base), dark, 0.9, curve(np.array([(z, 0) for z in (1, 3, 7, 9, 7, 3, 1.0)]))[:, 0])
    canvas.fill(both(ellipse(w * 0.52, length + 2, w * 0.2, 1.0, 12)), f.shape.skin * (0.4, 0.28, 0.26), 7.0)


def _age(canvas: Canvas, f: Identity, view: View) -> None:
    crease = f.shape.skin * (0.76, 0.68, 0.64)
    smile = max(view.expression.smile, 0) * 0.25
    if f.marks.age + smile * 0.2 > 0.55:
        fold = np.array(
            [(f.nose.width + 2, f.nose.length), (f.mouth.width + 3, 31), (f.mouth.width + 4, f.mouth.height)]
        )
        canvas.stroke(both(curve(fold)), crease, 0.5 + 0.8 * f.marks.age)
    if f.marks.age > 0.5:
        for k in range(1 + (f.marks.age > 0.75)):
            line = np.array([(-14 + 2 * k, -22.5 - 5 * k), (0, -23.5 - 5 * k), (14 - 2 * k, -22.5 - 5 * k)])
            canvas.stroke(curve(line), crease, 0.5 + 0.5 * f.marks.age)
        bag = ellipse(f.eyes.spacing, f.eyes.height + 2, f.eyes.width * 0.9, 2.5)
        canvas.shade(both(bag), (0.84, 0.78, 0.8))
