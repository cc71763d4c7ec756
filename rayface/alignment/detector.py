"""Face detectors: the interface, and OpenCV's YuNet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rayface.storage import one_line

_LOG_LEVEL = threading.Lock()  # OpenCV's level is that of the process, and every thread loads a detector
_LARGEST_SIDE = 1280  # of the image that YuNet searches; it finds faces of about 10 to 300 pixels


class Face(NamedTuple):
    """A face in a photograph: size of its box (width, height), landmarks (5, 2) as in TEMPLATE, pixels, and score."""

    size: tuple[float, float]
    landmarks: NDArray[np.float64]
    score: float


Detector = Callable[[NDArray[np.uint8]], list[Face]]
"""Returns the faces of a BGR photograph, uint8 (height, width, 3)."""


class YuNet:
    """OpenCV's detector; one thread at a time may use an instance.

    Args:
        path: face_detection_yunet_*.onnx of the OpenCV Zoo.
        min_score: faces of a lower score, 0 to 1, are not returned.

    Raises:
        ValueError: OpenCV cannot load the file.
    """

    def __init__(self, path: str, min_score: float) -> None:
        # OpenCV 5 warns, whenever a model is loaded, that its default target is not supported.
        with _LOG_LEVEL:
            level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
            try:
                self._net = cv2.FaceDetectorYN.create(path, "", (320, 320), score_threshold=min_score)
            except cv2.error as error:
                raise ValueError(
                    f"align.detector: {path}: is no YuNet model that OpenCV reads ({one_line(error)})"
                ) from None
            finally:
                cv2.utils.logging.setLogLevel(level)

    def __call__(self, photograph: NDArray[np.uint8]) -> list[Face]:
        """Return the faces of a BGR photograph."""
        height, width = photograph.shape[:2]
        scale = min(1.0, _LARGEST_SIDE / max(height, width))
        if scale < 1:
            small = max(1, round(width * scale)), max(1, round(height * scale))
            photograph = cv2.resize(photograph, small, interpolation=cv2.INTER_AREA)
        factor = np.array([width / photograph.shape[1], height / photograph.shape[0]])
        self._net.setInputSize((photograph.shape[1], photograph.shape[0]))
        found = self._net.detect(photograph)[1]
        return [
            Face(
                size=(float(row[2] * factor[0]), float(row[3] * factor[1])),
                landmarks=row[4:14].reshape(5, 2).astype(np.float64) * factor,
                score=float(row[14]),
            )
            for row in ([] if found is None else found)
        ]
