"""Embeddings of drawn identities, and tasks that run in the test's own process, for the tests of curation."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rayface.curate import partitions
from rayface.curate.clean import job, tasks
from rayface.curate.prune import class_probabilities, comparison, dataset_stats, selection
from rayface.embedding.embeddings import Embeddings, open_embeddings
from rayface.embedding.part_file import write_part

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

    Every third identity of two or more has duplicates: its last image is its first one, at another norm.
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


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of curation run in the test's own process, the last one first."""

    def map_unordered(work: Callable[[Any], Any], parts: Sequence[Any], *phase: Any, **of: Any) -> Iterator[Any]:
        yield from map(work, reversed(parts))

    for module in (class_probabilities, comparison, dataset_stats, job, partitions, selection, tasks):
        monkeypatch.setattr(module, "map_unordered", map_unordered)
    monkeypatch.setattr(tasks, "find_room", lambda device: (False, 1, 1))


@pytest.fixture
def put_embeddings(tmp_path: Path) -> Callable[..., Embeddings]:
    """A function of (labels, vectors, name) -> embeddings in tmp_path/name, with the keys k000, k001, ..."""

    def put(labels: NDArray[np.int64], vectors: NDArray[Any], name: str = "emb") -> Embeddings:
        (tmp_path / name).mkdir(exist_ok=True)
        batch = ([f"k{row:03d}" for row in range(len(labels))], labels, vectors)
        path = str(tmp_path / name / "0.parquet")
        write_part(path, [batch], size=vectors.shape[1], dtype="fp32", note={})
        return open_embeddings(tmp_path / name)

    return put
