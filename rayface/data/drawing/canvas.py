"""Anti-aliased canvas that turns with the head: shapes are given in face coordinates and a depth.

Coordinates as in `rayface.data.drawing.portrait`; depth z grows towards the viewer, 0 at the bridge of the nose.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from rayface.data.drawing.draws import Array
from rayface.data.drawing.view import View

_SHIFT = 4  # OpenCV's fixed-point bits: 1/16 pixel
_FIXED = 1 << _SHIFT
Depth = float | Array | None
Affine = tuple[Array, Array, Array]

RIM = -20.0  # depth of the head's outline
SIDES = (-1.0, 1.0)
DARK = np.array((38, 26, 28.0))
WHITE = np.array((246, 243, 238.0))
RELIEF = -16 / 38**2  # depth over x squared: the face recedes towards the cheeks
_CROP = 112.0
_EYE_POINT = np.array((56.0, 51.5))  # where the point between the eyes lies in an aligned crop
_NECK = 20.0  # the head nods about this height


@lru_cache
def _spline(num_points: int, closed: bool, steps: int) -> Array:
    """Return the Catmull-Rom matrix that turns `num_points` points into a smooth curve through them."""
    segments = num_points if closed else num_points - 1
    t = np.linspace(0, 1, steps, endpoint=False)
    basis = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2
    matrix = np.zeros((segments * steps + (not closed), num_points))
    for i in range(segments):
        for j in range(4):
            k = (i + j - 1) % num_points if closed else min(max(i + j - 1, 0), num_points - 1)
            matrix[i * steps : (i + 1) * steps, k] += basis[j]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def curve(points: Array, *, closed: bool = False, steps: int = 6) -> Array:
    """Return a smooth curve through `points`, (n, 2) or (curves, n, 2)."""
    return _spline(points.shape[-2], closed, steps) @ points


@lru_cache
def _circle(steps: int) -> Array:
    angle = np.arange(steps) * (2 * np.pi / steps)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def ellipse(x: float, y: float, rx: float, ry: float, steps: int = 20) -> Array:
    """Return the outline of an ellipse, (steps, 2)."""
    return _circle(steps) * (rx, ry) + np.array((x, y))


def mirrored(right: Array) -> Array:
    """Return an outline symmetric about x = 0 from its right half, (n, 2) from top to bottom, ends on the axis."""
    return np.concatenate([right, right[-2:0:-1] * (-1, 1)])


def both(right: Array) -> Array:
    """Return a shape (n, 2) and its mirror image, (2, n, 2)."""
    return np.stack([right, right * (-1.0, 1.0)])


class Canvas:
    """`layer`: premultiplied RGBA at twice the size, drawn in order; `shadow`: RGB at half the size, to be blurred
    and multiplied onto the layer, 255 where nothing is shaded."""

    def __init__(self, view: View, size: int) -> None:
        self.layer = np.zeros((2 * size, 2 * size, 4), np.uint8)
        self.shadow = np.full((size // 2, size // 2, 3), 255, np.uint8)
        self.unit = size / _CROP  # output pixels per crop pixel
        cos_yaw, sin_yaw, cos_pitch, sin_pitch = (
            np.cos(view.pose.yaw), np.sin(view.pose.yaw), np.cos(view.pose.pitch), np.sin(view.pose.pitch)
        )  # fmt: skip
        c, s = view.pose.scale * np.cos(view.pose.roll), view.pose.scale * np.sin(view.pose.roll)
        plane = np.array(((c, s), (-s, c)))
        # turning, scaling and dropping the depth is one affine map of (x, y, z)
        xy = np.array(((cos_yaw, -sin_yaw * sin_pitch), (0.0, cos_pitch))) @ plane
        depth = np.array((sin_yaw, cos_yaw * sin_pitch)) @ plane
        origin = np.array((0.0, _NECK * (1 - cos_pitch))) @ plane + _EYE_POINT + view.pose.shift
        self._crop_map = xy, depth, origin
        self._layer_map = _fixed_map(self._crop_map, 2 * self.unit)
        self._shadow_map = _fixed_map(self._crop_map, self.unit / 2)

    def project(self, points: Array, z: Depth = None) -> Array:
        """Project face coordinates (n, 2) to crop pixels (n, 2); without depth, points lie on the face's relief."""
        return _apply(self._crop_map, points, z)

    def fill(self, points: Array, colour: Array, z: Depth = None) -> None:
        """Draw a filled polygon (n, 2), or several that do not overlap (polygons, n, 2)."""
        shapes = self._place(self._layer_map, points, z)
        cv2.fillPoly(self.layer, shapes, (*colour.tolist(), 255.0), cv2.LINE_AA, _SHIFT)

    def stroke(self, points: Array, colour: Array, width: float, z: Depth = None) -> None:
        """Draw an open line (n, 2), or several (lines, n, 2); `width` in crop pixels."""
        lines = self._place(self._layer_map, points, z)
        thickness = max(1, round(width * 2 * self.unit))
        cv2.polylines(self.layer, lines, False, (*colour.tolist(), 255.0), thickness, cv2.LINE_AA, _SHIFT)

    def shade(self, points: Array, tint: Sequence[float] | Array, z: Depth = None) -> None:
        """Draw soft shadows in the shape of polygons: `tint` (3,) in 0..1 is what is left of the colour under them."""
        shapes = self._place(self._shadow_map, points, z)
        cv2.fillPoly(self.shadow, shapes, [255.0 * c for c in tint], cv2.LINE_AA, _SHIFT)

    def plain(self, points: Array, colour: Array) -> None:
        """Draw a filled polygon in crop pixels, which does not turn with the head."""
        fixed = np.rint((points * (2 * self.unit) - 0.5) * _FIXED).astype(np.int32)
        cv2.fillPoly(self.layer, [fixed], (*colour.tolist(), 255.0), cv2.LINE_AA, _SHIFT)

    @staticmethod
    def _place(affine: Affine, points: Array, z: Depth) -> list[Array]:
        if points.ndim == 2:
            return [_apply(affine, points, z).astype(np.int32)]
        return list(_apply(affine, points.reshape(-1, 2), z).astype(np.int32).reshape(points.shape))


def _apply(affine: Affine, points: Array, z: Depth) -> Array:
    xy, depth, origin = affine
    if isinstance(z, float):
        return points @ xy + (depth * z + origin)
    if z is None:
        z = points[:, 0] ** 2 * RELIEF
    return points @ xy + (z[:, None] * depth + origin)


def _fixed_map(affine: Affine, scale: float) -> Affine:
    """Return the map to OpenCV's fixed-point coordinates, which count from pixel centres."""
    xy, depth, origin = affine
    return xy * (scale * _FIXED), depth * (scale * _FIXED), (origin * scale - 0.5) * _FIXED + 0.5
