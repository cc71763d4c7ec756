"""A selector of drawn identities whose tasks run in the test's own process."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayface.curate import partitions
from rayface.curate.partitions import partition_by_identity
from rayface.curate.prune import class_probabilities, comparison, dataset_stats, selection
from rayface.curate.prune.selection import Selector
from rayface.embedding.embeddings import open_embeddings
from rayface.embedding.part_file import write_part

MakeSelector = Callable[..., Selector]


@pytest.fixture
def make_selector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSelector:
    """A function of (sizes, images in a partition, seed, embedding size) -> selector of drawn identities."""

    def map_unordered(work: Callable[[Any], Any], parts: Sequence[Any], *phase: Any, **of: Any) -> Iterator[Any]:
        yield from map(work, parts)

    for module in (class_probabilities, comparison, dataset_stats, partitions, selection):
        monkeypatch.setattr(module, "map_unordered", map_unordered)

    def make(sizes: Sequence[int], block: int, *, seed: int = 0, size: int = 8) -> Selector:
        random = np.random.default_rng(0)
        labels = np.repeat(np.arange(len(sizes)), sizes)
        vectors = random.standard_normal((len(sizes), size))[labels]
        vectors += random.standard_normal(vectors.shape) * random.uniform(0.4, 1.2, (len(labels), 1))
        batch = ([f"k{row:06d}" for row in range(len(labels))], labels, vectors)
        (tmp_path / "emb").mkdir(exist_ok=True)
        write_part(str(tmp_path / "emb" / "0.parquet"), [batch], size=size, dtype="fp32", note={})
        source = open_embeddings(tmp_path / "emb")
        found = partition_by_identity(source, tmp_path / "runs", 4 * size * block)
        return Selector(found, tmp_path / "decisions", seed=seed)

    return make
