"""Parameters of one image of a drawn person: everything that differs between images of the same person.

Every `sample` draws in a fixed order: changing it changes all images of a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayface.data.drawing.draws import CLOTH, Array, muted, normal, pick, ramp
from rayface.data.drawing.portrait import Identity

HATS = ("none", "beanie", "cap", "band")
_HAT_ODDS = (0.84, 0.07, 0.06, 0.03)
COVERS = ("none", "hand", "bar", "mask")
_COVER_ODDS = (0.87, 0.06, 0.05, 0.02)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Rotation, scale and shift (2,) of the head."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: Array

    @staticmethod
    def sample(rng: np.random.Generator) -> Pose:
        return Pose(
            yaw=normal(rng, 0, 0.27),
            pitch=normal(rng, 0, 0.16),
            roll=normal(rng, 0, 0.11),
            scale=normal(rng, 0.95, 0.05),
            shift=rng.normal(0, 2.2, 2),
        )


@dataclass(frozen=True, kw_only=True)
class Expression:
    """Expression of the face; `gaze` is (2,) in -1..1."""

    smile: float
    mouth_open: float
    brow_raise: float
    frown: float
    eyes_open: float
    gaze: Array

    @staticmethod
    def sample(rng: np.random.Generator) -> Expression:
        return Expression(
            smile=normal(rng, 1.4, 2.0),
            mouth_open=max(0.0, normal(rng, -0.6, 2.4)),
            brow_raise=normal(rng, 0.3, 1.1),
            frown=normal(rng, 0, 0.09),
            eyes_open=min(1.15, max(0.12, normal(rng, 0.93, 0.22))) if rng.random() > 0.03 else 0.05,
            gaze=np.clip(rng.normal(0, 0.4, 2), -1, 1),
        )


@dataclass(frozen=True, kw_only=True)
class Light:
    """Light; `direction` (3,) points towards it."""

    direction: Array
    ambient: float
    diffuse: float
    colour: Array


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Exposure and quality of the image."""

    exposure: float
    contrast: float
    blur: float
    noise: float
    quality: int

    @staticmethod
    def sample(rng: np.random.Generator) -> Camera:
        return Camera(
            exposure=float(np.exp(normal(rng, -0.1, 0.33))),
            contrast=float(np.exp(normal(rng, 0, 0.2))),
            blur=max(0.0, normal(rng, 0.15, 0.5)),
            noise=rng.random() ** 3 * 13,
            quality=int(rng.integers(72, 96)),
        )


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """What is behind the person: two colours (2, 3), and blurred blobs (n, 6): x, y, radius in 0..1, and a colour."""

    colours: Array
    angle: float
    blobs: Array

    @staticmethod
    def sample(rng: np.random.Generator) -> Backdrop:
        colours, angle = muted(rng.uniform(15, 245, (2, 3))), rng.uniform(0, 2 * np.pi)
        count = int(rng.integers(2, 7))
        place = rng.uniform((0, 0, 0.08), (1, 1, 0.4), (count, 3))
        return Backdrop(colours=colours, angle=angle, blobs=np.hstack([place, muted(rng.uniform(10, 250, (count, 3)))]))


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """Clothes, hair of the day (`hair_drift`, (4,)), glasses ("none", "clear" or "dark") and hat."""

    cloth: Array
    hair_drift: Array
    glasses: str
    hat: str
    hat_colour: Array

    @staticmethod
    def sample(rng: np.random.Generator, *, glasses: bool) -> Outfit:
        return Outfit(
            cloth=ramp(rng, CLOTH, 15.0),
            hair_drift=rng.normal(0, 1, 4),
            glasses="none" if not glasses else "dark" if rng.random() < 0.15 else "clear",
            hat=HATS[pick(rng, _HAT_ODDS)],
            hat_colour=ramp(rng, CLOTH, 15.0),
        )


@dataclass(frozen=True, kw_only=True)
class Cover:
    """What is between camera and face; `place` is (3,) in 0..1."""

    kind: str
    place: Array

    @staticmethod
    def sample(rng: np.random.Generator) -> Cover:
        return Cover(kind=COVERS[pick(rng, _COVER_ODDS)], place=rng.random(3))


@dataclass(frozen=True, kw_only=True)
class View:
    """One image of a person."""

    pose: Pose
    expression: Expression
    light: Light
    camera: Camera
    backdrop: Backdrop
    outfit: Outfit
    cover: Cover

    @staticmethod
    def sample(rng: np.random.Generator, identity: Identity) -> View:
        """Draw the circumstances of an image of `identity`."""
        azimuth, height = rng.uniform(-1.45, 1.45), rng.uniform(-1.0, 0.45)
        direction = np.array((np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)))
        warmth, tint = normal(rng, 0, 0.15), normal(rng, 0, 0.045)
        glasses = bool(rng.random() < (0.8 if identity.frame.worn else 0.05))
        return View(
            pose=Pose.sample(rng),
            expression=Expression.sample(rng),
            light=Light(
                direction=direction,
                ambient=rng.uniform(0.25, 0.75),
                diffuse=rng.uniform(0.25, 1.1),
                colour=np.array((1 + warmth, 1 + tint, 1 - warmth)),
            ),
            camera=Camera.sample(rng),
            backdrop=Backdrop.sample(rng),
            outfit=Outfit.sample(rng, glasses=glasses),
            cover=Cover.sample(rng),
        )
