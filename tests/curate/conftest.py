"""Embeddings of drawn identities, for the tests of curation."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Drawn = Callable[..., tuple[NDArray[Any], NDArray[np.int64]]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def drawn() -> Drawn:
    """A function of (sizes, size of an embedding, dtype, seed) -> embeddings (N, D), offsets (I + 1,).

    Every third identity of two or more has duplicates: its last face is its first one, at another norm.
    """

    def draw(sizes: Any, size: int = 64, dtype: Any = np.float32, seed: int = 0) -> tuple[NDArray[Any], Any]:
        random = np.random.default_rng(seed)
        offsets = np.r_[0, np.cumsum(sizes)].astype(np.int64)
        centers = np.repeat(random.standard_normal((len(sizes), size)), sizes, axis=0)
        noise = random.standard_normal((offsets[-1], size)) * random.uniform(0.4, 1.2, (offsets[-1], 1))
        embeddings = (centers + noise) * random.choice([0.5, 1, 4], (offsets[-1], 1))
        for first, last in list(itertools.pairwise(offsets))[::3]:
            if last - first > 1:
                embeddings[last - 1] = 2 * embeddings[first]
        return embeddings.astype(dtype), offsets

    return draw
