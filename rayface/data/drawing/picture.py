"""Draw a face: pure functions of a person, an image's parameters and a size. No Ray, no torch, no files.

Image `index` of person `number` depends only on (seed, number, index).
"""

from functools import lru_cache

import cv2
import numpy as np

from rayface.data.drawing import features
from rayface.data.drawing.canvas import RELIEF, Canvas, ellipse
from rayface.data.drawing.draws import Array
from rayface.data.drawing.portrait import Identity
from rayface.data.drawing.view import View

_GRAIN = 256  # side of the tile of film grain


@lru_cache(maxsize=256)
def sample_identity(seed: int, number: int) -> Identity:
    """Return person `number` of the set `seed`; other seeds hold other people."""
    return Identity.sample(np.random.default_rng(np.random.SeedSequence((seed, number))))


def sample_view(seed: int, number: int, index: int) -> View:
    """Return the parameters of image `index` of person `number`."""
    # seed sequences pad with zeros: the 1 keeps picture 0 apart from the person
    rng = np.random.default_rng(np.random.SeedSequence((seed, number, index, 1)))
    return View.sample(rng, sample_identity(seed, number))


def landmarks(identity: Identity, view: View, size: int = 112) -> Array:
    """Return left eye, right eye, nose tip, left and right corner of the mouth, (5, 2) pixels (x, y)."""
    f = identity
    points = np.array(
        [
            (-f.eyes.spacing, 0.0),
            (f.eyes.spacing, 0.0),
            (0.0, f.nose.length),
            (-f.mouth.width, f.mouth.height),
            (f.mouth.width, f.mouth.height),
        ]
    )
    depth = points[:, 0] ** 2 * RELIEF
    depth[2] = features.NOSE_DEPTH
    canvas = Canvas(view, size)
    return canvas.project(points, depth) * canvas.unit


def draw_face(identity: Identity, view: View, size: int = 112) -> Array:
    """Draw one image.

    Args:
        size: side in pixels; even, 16 to 256.

    Returns:
        (size, size, 3) uint8 RGB.
    """
    canvas = Canvas(view, size)
    features.draw(canvas, identity, view)
    return _develop(_lit(canvas, view, size), view)


def _lit(canvas: Canvas, view: View, size: int) -> Array:
    """Return the head in its light in front of the backdrop, (size, size, 3) float32."""
    layer = cv2.resize(canvas.layer, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    shadow = cv2.GaussianBlur(canvas.shadow, (0, 0), 1.5 * canvas.unit)
    light = cv2.resize(_light_map(canvas, view), shadow.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    light *= shadow * np.float32(1 / 255)
    head = layer[..., :3] * cv2.resize(light, (size, size), interpolation=cv2.INTER_LINEAR)
    cover = layer[..., 3:] / 255
    return head + _backdrop(view, size) * (1 - cover)


@lru_cache
def _grid(side: int) -> Array:
    """Return crop coordinates of the cells of a coarse grid, (side * side, 2)."""
    line = (np.arange(side) + 0.5) * (112 / side)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def _light_map(canvas: Canvas, view: View, side: int = 28) -> Array:
    """Return the light by Lambert's law on an ellipsoid the size of the head, (side, side, 3)."""
    centre = canvas.project(np.array(((0.0, 8.0),)), -12.0)[0]
    n = (_grid(side) - centre) / (46 * view.pose.scale, 62 * view.pose.scale)
    radius = np.sqrt((n * n).sum(1)).clip(1e-6)
    xy = n * (np.minimum(radius, 0.97) / radius)[:, None]
    facing = xy @ view.light.direction[:2] + np.sqrt(1 - (xy * xy).sum(1)) * view.light.direction[2]
    # the soft foot of the ramp: light creeps a little around the edge of a face
    lambert = np.maximum(facing + 0.15, 0) / 1.15
    glow = view.light.ambient + view.light.diffuse * lambert[:, None] * view.light.colour
    glow /= view.light.ambient + 0.62 * view.light.diffuse  # the camera meters for the face
    return glow.reshape(side, side, 3).astype(np.float32)


def _backdrop(view: View, size: int, side: int = 28) -> Array:
    """Return a gradient of two colours with blurred shapes, (size, size, 3) float32."""
    direction = np.array((np.cos(view.backdrop.angle), np.sin(view.backdrop.angle)))
    ramp = ((_grid(side) / 56 - 1) @ direction * 0.4 + 0.5).clip(0, 1)[:, None]
    image = (
        (view.backdrop.colours[0] * (1 - ramp) + view.backdrop.colours[1] * ramp)
        .reshape(side, side, 3)
        .astype(np.uint8)
    )
    for x, y, radius, *colour in view.backdrop.blobs.tolist():
        outline = (ellipse(x * side, y * side, radius * side, radius * side, 16) * 16).astype(np.int32)
        cv2.fillPoly(image, [outline], colour, cv2.LINE_8, 4)
    image = cv2.resize(cv2.GaussianBlur(image, (0, 0), 1.6), (size, size), interpolation=cv2.INTER_LINEAR)
    return image.astype(np.float32)


@lru_cache
def _grain() -> Array:
    """Return a tile of image noise of deviation 1: luminance and a little colour."""
    rng = np.random.default_rng(0)
    tile = rng.standard_normal((_GRAIN, _GRAIN, 1)) * 0.8 + rng.standard_normal((_GRAIN, _GRAIN, 3)) * 0.6
    return tile.astype(np.float32)


def _develop(image: Array, view: View) -> Array:
    """Apply exposure, contrast, blur and noise; return uint8."""
    image = image * np.float32(view.camera.exposure / 255)
    image = np.clip(image, 1e-3, None) ** np.float32(1.15 * view.camera.contrast)
    image = image * 1.4 / (1 + 0.4 * image)  # highlights roll off instead of clipping
    image = image * 255
    size = image.shape[0]
    if view.camera.blur > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), view.camera.blur * size / 112)
    top, left = (view.cover.place[:2] * 1e6).astype(int) % (_GRAIN - size + 1)
    grain = _grain()[top : top + size, left : left + size]
    return np.clip(np.rint(image + grain * np.float32(view.camera.noise)), 0, 255).astype(np.uint8)
