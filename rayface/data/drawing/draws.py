"""Palettes, and random draws of the parameters of drawn faces."""

import numpy as np

Array = np.ndarray

SKIN = np.array(
    [(245, 214, 192), (238, 196, 162), (226, 178, 136), (206, 148, 104), (158, 104, 70), (106, 68, 48)], float
)
HAIR = np.array(
    [(32, 25, 22), (54, 38, 29), (84, 54, 34), (124, 78, 44), (176, 124, 66), (222, 184, 116), (164, 70, 36)],
    float,
)
EYE = np.array([(72, 46, 28), (110, 72, 36), (126, 112, 60), (84, 122, 84), (88, 134, 174), (120, 134, 146)], float)
CLOTH = np.array(
    [(52, 74, 110), (150, 54, 58), (70, 110, 84), (222, 206, 180), (60, 60, 66), (214, 150, 62), (120, 92, 140)],
    float,
)


def mix(a: Array, b: Array | float, amount: float) -> Array:
    """Return the colour `amount` of the way from `a` to `b`."""
    return a + (np.asarray(b, float) - a) * amount


def normal(rng: np.random.Generator, mean: float, deviation: float) -> float:
    """Draw from a normal distribution, truncated at two deviations so that faces stay plausible."""
    return mean + deviation * min(max(rng.standard_normal(), -2.0), 2.0)


def ramp(rng: np.random.Generator, colours: Array, jitter: float, end: float = 1.0) -> Array:
    """Draw a colour between two neighbours of a ramp, from its first part `end`."""
    t = rng.random() * end * (len(colours) - 1)
    low = min(int(t), len(colours) - 2)
    return np.clip(mix(colours[low], colours[low + 1], t - low) + rng.normal(0, jitter, 3), 8, 255)


def pick(rng: np.random.Generator, odds: tuple[float, ...]) -> int:
    """Draw an index with the given odds, which sum to 1."""
    return int(np.searchsorted(np.cumsum(odds), rng.random(), side="right").clip(0, len(odds) - 1))


def muted(colours: Array) -> Array:
    """Return colours (n, 3) halfway to their grey."""
    return mix(colours, colours.mean(1, keepdims=True), 0.5)
