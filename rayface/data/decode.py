"""JPEG bytes to uint8 images."""

from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray


def decode_jpeg(jpeg: bytes, size: int) -> NDArray[np.uint8]:
    """One JPEG as RGB (size, size, 3); a larger one is scaled down while it is decoded.

    Raises:
        ValueError: when the bytes are not a JPEG that can be decoded.
    """
    height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    image = simplejpeg.decode_jpeg(jpeg, min_height=size, min_width=size)
    if image.shape[:2] != (size, size):
        shrink = min(height, width) > size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
    return image


def decode_jpegs(jpegs: Sequence[bytes], size: int) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode many JPEGs: images (n, size, size, 3) RGB, and the reason for each one that could not be.

    The places of bad ones are left black; the caller decides what stands there.
    """
    images = np.zeros((len(jpegs), size, size, 3), np.uint8)
    bad: dict[int, str] = {}
    for i, jpeg in enumerate(jpegs):
        try:
            images[i] = decode_jpeg(jpeg, size)
        except ValueError as error:
            bad[i] = str(error)
    return images, bad
