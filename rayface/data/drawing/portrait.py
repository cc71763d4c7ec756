"""Parameters of a drawn person: everything that stays the same from image to image.

Lengths are in pixels of a 112x112 aligned crop, measured from the point between the eyes (x right, y down); colours are
RGB in 0..255; angles are radians. Every `sample` draws in a fixed order: changing it changes all people of a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayface.data.drawing.draws import CLOTH, EYE, HAIR, SKIN, Array, mix, normal, pick, ramp

HAIR_STYLES = ("bald", "buzz", "short", "swept", "curly", "bob", "long")
_HAIR_ODDS = (0.07, 0.09, 0.24, 0.18, 0.14, 0.13, 0.15)
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
_BEARD_ODDS = (0.60, 0.13, 0.08, 0.08, 0.11)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Outline of head and ears, and the skin."""

    crown: float
    temple: float
    cheek: float
    jaw: float
    chin_width: float
    chin: float
    skin: Array
    ear_size: float
    ear_out: float

    @staticmethod
    def sample(rng: np.random.Generator, skin: Array) -> Shape:
        build = rng.standard_normal() * 0.6  # broad faces are broad everywhere
        return Shape(
            crown=normal(rng, 55, 3),
            temple=normal(rng, 35.5, 1.6) + build,
            cheek=normal(rng, 36.5, 1.8) + build,
            jaw=normal(rng, 30, 2.4) + build,
            chin_width=normal(rng, 14, 2.8),
            chin=normal(rng, 61, 2.8),
            skin=skin,
            ear_size=normal(rng, 10, 1.5),
            ear_out=normal(rng, 2.5, 1.6),
        )


@dataclass(frozen=True, kw_only=True)
class Eyes:
    """The right eye; the left one mirrors it."""

    spacing: float
    width: float
    height: float
    tilt: float
    fold: float
    lashes: float
    iris: Array
    iris_size: float

    @staticmethod
    def sample(rng: np.random.Generator, pale: float, *, long_hair: bool) -> Eyes:
        return Eyes(
            spacing=normal(rng, 18.2, 1.5),
            width=normal(rng, 8.9, 0.8),
            height=normal(rng, 4.7, 0.8),
            tilt=normal(rng, 0.07, 0.1),
            fold=rng.random(),
            lashes=rng.random() * (1.0 if long_hair else 0.6),
            iris=ramp(rng, EYE, 6.0, pale),
            iris_size=normal(rng, 4.5, 0.3),
        )


@dataclass(frozen=True, kw_only=True)
class Brows:
    """The right eyebrow; the left one mirrors it."""

    height: float
    length: float
    thickness: float
    arch: float
    tilt: float
    inner: float

    @staticmethod
    def sample(rng: np.random.Generator) -> Brows:
        return Brows(
            height=normal(rng, 12.5, 1.7),
            length=normal(rng, 11, 1.5),
            thickness=normal(rng, 1.7, 0.6),
            arch=normal(rng, 2.2, 1.3),
            tilt=normal(rng, 0.0, 0.11),
            inner=normal(rng, 8.2, 1.2),
        )


@dataclass(frozen=True, kw_only=True)
class Nose:
    """Nose."""

    length: float
    width: float
    bridge: float
    tip: float

    @staticmethod
    def sample(rng: np.random.Generator) -> Nose:
        return Nose(
            length=normal(rng, 20.5, 2.4),
            width=normal(rng, 8.0, 1.4),
            bridge=normal(rng, 3.6, 0.8),
            tip=normal(rng, 0.5, 0.4),
        )


@dataclass(frozen=True, kw_only=True)
class Mouth:
    """Mouth and lips; `rest` is the smile of the face at rest."""

    height: float
    width: float
    upper_lip: float
    lower_lip: float
    lip_bow: float
    lip: Array
    rest: float

    @staticmethod
    def sample(rng: np.random.Generator, skin: Array) -> Mouth:
        return Mouth(
            height=normal(rng, 39.5, 2.2),
            width=normal(rng, 14.0, 1.9),
            upper_lip=normal(rng, 2.7, 0.8),
            lower_lip=normal(rng, 3.7, 0.9),
            lip_bow=normal(rng, 0.6, 0.45),
            lip=mix(skin * (0.86, 0.62, 0.6), np.array((188, 62, 72.0)), 0.15 + 0.6 * rng.random() ** 2),
            rest=normal(rng, 0.6, 1.0),
        )


@dataclass(frozen=True, kw_only=True)
class Hair:
    """Hair and beard."""

    colour: Array
    style: str
    volume: float
    hairline: float
    recession: float
    part: float
    fringe: float
    curls: float
    beard: str
    beard_size: float

    @staticmethod
    def sample(rng: np.random.Generator, colour: Array, style: str, beard: str, age: float) -> Hair:
        has_fringe = {"long": 0.4, "bob": 0.4, "short": 0.3}.get(style, 0.0)
        return Hair(
            colour=colour,
            style=style,
            volume=max(0.4, normal(rng, 1.0, 0.3)),
            hairline=normal(rng, 35, 4.5),
            recession=max(0.0, normal(rng, 2.5, 3.0)) + (4.0 * age if beard != "none" else 0.0),
            part=rng.uniform(-1, 1),
            fringe=float(rng.random() < has_fringe) * rng.uniform(0.6, 1.0),
            curls=rng.uniform(5, 11),
            beard=beard,
            beard_size=normal(rng, 1.0, 0.25),
        )


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Age and marks of the skin; freckles and moles are positions (n, 2)."""

    age: float
    freckles: Array
    moles: Array
    blush: float

    @staticmethod
    def sample(rng: np.random.Generator, age: float) -> Marks:
        return Marks(
            age=age,
            freckles=_spots(rng, int(rng.integers(14, 30)) if rng.random() < 0.16 else 0, 22, 12),
            moles=_spots(rng, int(rng.integers(0, 3)) if rng.random() < 0.4 else 0, 26, 28),
            blush=rng.random(),
        )


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The person's glasses; `worn` if they usually wear them."""

    worn: bool
    shape: float
    size: float
    colour: Array

    @staticmethod
    def sample(rng: np.random.Generator) -> Frame:
        return Frame(
            worn=bool(rng.random() < 0.14),
            shape=rng.random(),
            size=normal(rng, 1.0, 0.09),
            colour=mix(ramp(rng, CLOTH, 8.0), 30.0, 0.55),
        )


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One person."""

    shape: Shape
    eyes: Eyes
    brows: Brows
    nose: Nose
    mouth: Mouth
    hair: Hair
    marks: Marks
    frame: Frame

    @staticmethod
    def sample(rng: np.random.Generator) -> Identity:
        """Draw a person."""
        skin = ramp(rng, SKIN, 5.0)
        age = rng.random() ** 1.4
        # Dark skin goes with dark hair and eyes, unless the hair is dyed.
        pale = float(np.clip((skin.mean() - 90) / 110, 0.1, 1.0))
        colour = mix(
            ramp(rng, HAIR, 2.0, 1.0 if rng.random() < 0.08 else pale),
            np.array((196, 192, 188.0)),
            max(0.0, age - 0.62) * 2.2 * rng.random(),
        )
        style = HAIR_STYLES[pick(rng, _HAIR_ODDS)]
        long_hair = style in ("bob", "long")
        beard = "none" if long_hair else BEARDS[pick(rng, _BEARD_ODDS)]
        return Identity(
            shape=Shape.sample(rng, skin),
            eyes=Eyes.sample(rng, pale, long_hair=long_hair),
            brows=Brows.sample(rng),
            nose=Nose.sample(rng),
            mouth=Mouth.sample(rng, skin),
            hair=Hair.sample(rng, colour, style, beard, age),
            marks=Marks.sample(rng, age),
            frame=Frame.sample(rng),
        )


def _spots(rng: np.random.Generator, count: int, width: float, height: float) -> Array:
    """Draw `count` positions on the cheeks and around the nose, (count, 2)."""
    return rng.uniform((-width, 16 - height), (width, 16 + height), (count, 2))
