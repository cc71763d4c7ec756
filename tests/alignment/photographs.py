"""Photographs with a known face, and a detector that knows where it is."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rayface.alignment.detector import Face
from rayface.evaluation.alignment import TEMPLATE

SCALE = 1.5
TURN = np.array([[0.8, -0.6], [0.6, 0.8]])
PLACE = np.array([160.0, 40.0])
SIDE = 320


def face(seed: int) -> NDArray[np.uint8]:
    """Return an aligned face, smooth, BGR."""
    coarse = np.random.default_rng(seed).integers(40, 216, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)


def photograph(seed: int) -> NDArray[np.uint8]:
    """Return a photograph with the face, turned and larger, BGR."""
    matrix = np.column_stack([SCALE * TURN, PLACE])
    return cv2.warpAffine(face(seed), matrix, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)


def save(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def knows_the_face(image: NDArray[np.uint8]) -> list[Face]:
    """Find the face of `photograph` and a smaller one, and none in a black image."""
    if not image.any():
        return []
    landmarks = TEMPLATE @ (SCALE * TURN).T + PLACE
    return [
        Face(size=(20.0, 20.0), landmarks=TEMPLATE / 9, score=0.99),
        Face(size=(150.0, 170.0), landmarks=landmarks, score=0.9),
    ]
