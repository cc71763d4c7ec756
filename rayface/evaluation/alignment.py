"""Face alignment: map five landmarks to ArcFace's template by a similarity transform."""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

# Eyes, tip of the nose, corners of the mouth, left to right as seen; pixels (x, y) of a 112 x 112 image.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_MAX_SHRINK = 2.0  # beyond this factor bilinear sampling skips pixels


def similarity(source: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """Return the least-squares similarity transform between two sets of points (Umeyama, 1991).

    Args:
        source: (n, 2) points x, y; at least two different ones.
        target: (n, 2) points to map to.

    Returns:
        (2, 3) matrix M: target ~ M[:, :2] @ point + M[:, 2]; never a reflection.

    Raises:
        ValueError: points of another shape, not finite, or all equal.
    """
    a, b = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"landmarks of shape {a.shape} and {b.shape}: must be finite points (n, 2), as many of each")
    from_mean, to_mean = a - a.mean(0), b - b.mean(0)
    variance = np.square(from_mean).sum()
    if variance == 0:
        raise ValueError("landmarks: all are equal: must be different points")
    u, stretch, v = np.linalg.svd(to_mean.T @ from_mean)
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    rotation = (u * sign) @ v
    scale = (stretch * sign).sum() / variance
    return np.column_stack([scale * rotation, b.mean(0) - scale * rotation @ a.mean(0)])


def align(image: NDArray[np.uint8], landmarks: ArrayLike, size: int = 112) -> NDArray[np.uint8]:
    """Crop a face from a photograph, aligned to the template.

    Args:
        image: uint8 (height, width, 3), any channel order.
        landmarks: (5, 2) pixels x, y in the image, in the order of `TEMPLATE`.
        size: side of the result, pixels.

    Returns:
        uint8 (size, size, 3); black outside of the photograph.

    Raises:
        ValueError: see `similarity`.
    """
    points = np.asarray(landmarks, np.float64)
    matrix = similarity(points, TEMPLATE * size / 112)
    scale = float(np.sqrt(np.linalg.det(matrix[:, :2])))
    if scale * _MAX_SHRINK < 1:
        height, width = (max(1, round(side * scale * _MAX_SHRINK)) for side in image.shape[:2])
        factor = np.array([width / image.shape[1], height / image.shape[0]])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        # Integer coordinates are pixel centres, not corners.
        matrix = similarity((points + 0.5) * factor - 0.5, TEMPLATE * size / 112)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
