"""Unit vectors of drawn persons, for the tests of clustering."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

People = Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]]


@pytest.fixture
def people() -> People:
    """A function of (persons, images of each, spread, size, seed) -> unit vectors (N, size), labels (N,), mixed."""

    def draw(
        persons: int, images: int, *, spread: float = 1.0, size: int = 32, seed: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        random = np.random.default_rng(seed)
        labels = random.permutation(np.repeat(np.arange(persons), images))
        vectors = random.standard_normal((persons, size))[labels]
        vectors += spread * random.standard_normal(vectors.shape)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.astype(np.float32), labels

    return draw
