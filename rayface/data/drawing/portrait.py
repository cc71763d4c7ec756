"""What a drawn face is made of: the parameters of a person, and those of one picture of that person.

Lengths are in pixels of a 112x112 aligned crop, measured from the point between the eyes (x right, y down);
colours are RGB in 0..255; angles are radians. Nothing here draws; see `rayface.data.drawing.picture`.
"""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

_SKIN = np.array(
    [(245, 214, 192), (238, 196, 162), (226, 178, 136), (206, 148, 104), (158, 104, 70), (106, 68, 48)], float
)
_HAIR = np.array(
    [(32, 25, 22), (54, 38, 29), (84, 54, 34), (124, 78, 44), (176, 124, 66), (222, 184, 116), (164, 70, 36)],
    float,
)
_EYE = np.array([(72, 46, 28), (110, 72, 36), (126, 112, 60), (84, 122, 84), (88, 134, 174), (120, 134, 146)], float)
_CLOTH = np.array(
    [(52, 74, 110), (150, 54, 58), (70, 110, 84), (222, 206, 180), (60, 60, 66), (214, 150, 62), (120, 92, 140)],
    float,
)

HAIR_STYLES = ("bald", "buzz", "short", "swept", "curly", "bob", "long")
_HAIR_ODDS = (0.07, 0.09, 0.24, 0.18, 0.14, 0.13, 0.15)
BEARDS = ("none", "stubble", "moustache", "goatee", "full")
_BEARD_ODDS = (0.60, 0.13, 0.08, 0.08, 0.11)
HATS = ("none", "beanie", "cap", "band")
_HAT_ODDS = (0.84, 0.07, 0.06, 0.03)
COVERS = ("none", "hand", "bar", "mask")
_COVER_ODDS = (0.87, 0.06, 0.05, 0.02)


def mix(a: Array, b: Array | float, amount: float) -> Array:
    """The colour `amount` of the way from `a` to `b`."""
    return a + (np.asarray(b, float) - a) * amount


def _normal(rng: np.random.Generator, mean: float, deviation: float) -> float:
    """A normal draw cut off at two deviations, so that no face falls apart."""
    return mean + deviation * min(max(rng.standard_normal(), -2.0), 2.0)


def _ramp(rng: np.random.Generator, colours: Array, jitter: float, end: float = 1.0) -> Array:
    """A colour between two neighbours of a ramp, from its first part `end`."""
    t = rng.random() * end * (len(colours) - 1)
    low = min(int(t), len(colours) - 2)
    return np.clip(mix(colours[low], colours[low + 1], t - low) + rng.normal(0, jitter, 3), 8, 255)


def _pick(rng: np.random.Generator, odds: tuple[float, ...]) -> int:
    """An index drawn with the given odds (they sum to 1)."""
    return int(np.searchsorted(np.cumsum(odds), rng.random(), side="right").clip(0, len(odds) - 1))


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One person: everything that stays the same from picture to picture."""

    # head
    crown: float
    temple: float
    cheek: float
    jaw: float
    chin_width: float
    chin: float
    skin: Array
    ear_size: float
    ear_out: float
    # eyes and brows
    eye_spacing: float
    eye_width: float
    eye_height: float
    eye_tilt: float
    eye_fold: float
    lashes: float
    iris: Array
    iris_size: float
    brow_height: float
    brow_length: float
    brow_thickness: float
    brow_arch: float
    brow_tilt: float
    brow_inner: float
    # nose and mouth
    nose_length: float
    nose_width: float
    nose_bridge: float
    nose_tip: float
    mouth_height: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    lip_bow: float
    lip: Array
    mouth_rest: float
    # hair
    hair: Array
    hair_style: str
    hair_volume: float
    hairline: float
    hair_recession: float
    hair_part: float
    fringe: float
    curls: float
    beard: str
    beard_size: float
    # marks
    age: float
    freckles: Array  # (n, 2) positions
    moles: Array  # (n, 2) positions
    blush: float
    wears_glasses: bool
    frame_shape: float
    frame_size: float
    frame: Array

    @staticmethod
    def sample(rng: np.random.Generator) -> "Identity":
        """Draws a person."""
        n = _normal
        skin = _ramp(rng, _SKIN, 5.0)
        age = rng.random() ** 1.4
        # dark skin goes with dark hair and eyes, except where somebody dyes it
        pale = float(np.clip((skin.mean() - 90) / 110, 0.1, 1.0))
        hair = mix(
            _ramp(rng, _HAIR, 2.0, 1.0 if rng.random() < 0.08 else pale),
            np.array((196, 192, 188.0)),
            max(0.0, age - 0.62) * 2.2 * rng.random(),
        )
        style = HAIR_STYLES[_pick(rng, _HAIR_ODDS)]
        long_hair = style in ("bob", "long")
        beard = "none" if long_hair else BEARDS[_pick(rng, _BEARD_ODDS)]
        build = rng.standard_normal() * 0.6  # broad faces are broad everywhere
        return Identity(
            crown=n(rng, 55, 3),
            temple=n(rng, 35.5, 1.6) + build,
            cheek=n(rng, 36.5, 1.8) + build,
            jaw=n(rng, 30, 2.4) + build,
            chin_width=n(rng, 14, 2.8),
            chin=n(rng, 61, 2.8),
            skin=skin,
            ear_size=n(rng, 10, 1.5),
            ear_out=n(rng, 2.5, 1.6),
            eye_spacing=n(rng, 18.2, 1.5),
            eye_width=n(rng, 8.9, 0.8),
            eye_height=n(rng, 4.7, 0.8),
            eye_tilt=n(rng, 0.07, 0.1),
            eye_fold=rng.random(),
            lashes=rng.random() * (1.0 if long_hair else 0.6),
            iris=_ramp(rng, _EYE, 6.0, pale),
            iris_size=n(rng, 4.5, 0.3),
            brow_height=n(rng, 12.5, 1.7),
            brow_length=n(rng, 11, 1.5),
            brow_thickness=n(rng, 1.7, 0.6),
            brow_arch=n(rng, 2.2, 1.3),
            brow_tilt=n(rng, 0.0, 0.11),
            brow_inner=n(rng, 8.2, 1.2),
            nose_length=n(rng, 20.5, 2.4),
            nose_width=n(rng, 8.0, 1.4),
            nose_bridge=n(rng, 3.6, 0.8),
            nose_tip=n(rng, 0.5, 0.4),
            mouth_height=n(rng, 39.5, 2.2),
            mouth_width=n(rng, 14.0, 1.9),
            upper_lip=n(rng, 2.7, 0.8),
            lower_lip=n(rng, 3.7, 0.9),
            lip_bow=n(rng, 0.6, 0.45),
            lip=mix(skin * (0.86, 0.62, 0.6), np.array((188, 62, 72.0)), 0.15 + 0.6 * rng.random() ** 2),
            mouth_rest=n(rng, 0.6, 1.0),
            hair=hair,
            hair_style=style,
            hair_volume=max(0.4, n(rng, 1.0, 0.3)),
            hairline=n(rng, 35, 4.5),
            hair_recession=max(0.0, n(rng, 2.5, 3.0)) + (4.0 * age if beard != "none" else 0.0),
            hair_part=rng.uniform(-1, 1),
            fringe=float(rng.random() < {"long": 0.4, "bob": 0.4, "short": 0.3}.get(style, 0.0))
            * rng.uniform(0.6, 1.0),
            curls=rng.uniform(5, 11),
            beard=beard,
            beard_size=n(rng, 1.0, 0.25),
            age=age,
            freckles=_spots(rng, int(rng.integers(14, 30)) if rng.random() < 0.16 else 0, 22, 12),
            moles=_spots(rng, int(rng.integers(0, 3)) if rng.random() < 0.4 else 0, 26, 28),
            blush=rng.random(),
            wears_glasses=bool(rng.random() < 0.14),
            frame_shape=rng.random(),
            frame_size=n(rng, 1.0, 0.09),
            frame=mix(_ramp(rng, _CLOTH, 8.0), 30.0, 0.55),
        )


def _spots(rng: np.random.Generator, count: int, width: float, height: float) -> Array:
    """`count` positions on the cheeks and around the nose, (count, 2)."""
    return rng.uniform((-width, 16 - height), (width, 16 + height), (count, 2))


def _muted(colours: Array) -> Array:
    """Colours (n, 3) halfway to their grey."""
    return mix(colours, colours.mean(1, keepdims=True), 0.5)


def _blobs(rng: np.random.Generator, count: int) -> Array:
    """Blurred things behind a person, (count, 6)."""
    place = rng.uniform((0, 0, 0.08), (1, 1, 0.4), (count, 3))
    return np.hstack([place, _muted(rng.uniform(10, 250, (count, 3)))])


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture: everything that differs between two pictures of the same person."""

    # pose
    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: Array  # (2,)
    # expression
    smile: float
    mouth_open: float
    brow_raise: float
    frown: float
    eyes_open: float
    gaze: Array  # (2,) in -1..1
    # light and camera
    light: Array  # (3,) direction towards the light
    ambient: float
    diffuse: float
    light_colour: Array
    exposure: float
    contrast: float
    blur: float
    noise: float
    quality: int
    # surroundings
    backdrop: Array  # (2, 3) colours
    backdrop_angle: float
    blobs: Array  # (n, 6): x, y, radius in 0..1, and a colour
    cloth: Array
    hair_drift: Array  # (4,) how today's hair differs
    glasses: str  # "none", "clear", "dark"
    hat: str
    hat_colour: Array
    cover: str
    cover_place: Array  # (3,) in 0..1

    @staticmethod
    def sample(rng: np.random.Generator, identity: Identity) -> "View":
        """Draws the circumstances of a picture of `identity`."""
        n = _normal
        azimuth, height = rng.uniform(-1.45, 1.45), rng.uniform(-1.0, 0.45)
        light = np.array((np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)))
        warmth, tint = n(rng, 0, 0.15), n(rng, 0, 0.045)
        glasses = rng.random() < (0.8 if identity.wears_glasses else 0.05)
        return View(
            yaw=n(rng, 0, 0.27),
            pitch=n(rng, 0, 0.16),
            roll=n(rng, 0, 0.11),
            scale=n(rng, 0.95, 0.05),
            shift=rng.normal(0, 2.2, 2),
            smile=n(rng, 1.4, 2.0),
            mouth_open=max(0.0, n(rng, -0.6, 2.4)),
            brow_raise=n(rng, 0.3, 1.1),
            frown=n(rng, 0, 0.09),
            eyes_open=min(1.15, max(0.12, n(rng, 0.93, 0.22))) if rng.random() > 0.03 else 0.05,
            gaze=np.clip(rng.normal(0, 0.4, 2), -1, 1),
            light=light,
            ambient=rng.uniform(0.25, 0.75),
            diffuse=rng.uniform(0.25, 1.1),
            light_colour=np.array((1 + warmth, 1 + tint, 1 - warmth)),
            exposure=float(np.exp(n(rng, -0.1, 0.33))),
            contrast=float(np.exp(n(rng, 0, 0.2))),
            blur=max(0.0, n(rng, 0.15, 0.5)),
            noise=rng.random() ** 3 * 13,
            quality=int(rng.integers(72, 96)),
            backdrop=_muted(rng.uniform(15, 245, (2, 3))),
            backdrop_angle=rng.uniform(0, 2 * np.pi),
            blobs=_blobs(rng, int(rng.integers(2, 7))),
            cloth=_ramp(rng, _CLOTH, 15.0),
            hair_drift=rng.normal(0, 1, 4),
            glasses="none" if not glasses else "dark" if rng.random() < 0.15 else "clear",
            hat=HATS[_pick(rng, _HAT_ODDS)],
            hat_colour=_ramp(rng, _CLOTH, 15.0),
            cover=COVERS[_pick(rng, _COVER_ODDS)],
            cover_place=rng.random(3),
        )
