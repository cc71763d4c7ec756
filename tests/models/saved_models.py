"""Sizes and images of the models' tests."""

import numpy as np

SIZE = 32


def random_faces(count):
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
