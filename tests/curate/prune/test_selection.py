"""Rules applied partition by partition, without Ray: what is computed how often, what a threshold is searched on."""

import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayface.curate import partitions as partitions
from rayface.curate.partitions import partition_by_identity, read_partition
from rayface.curate.prune import class_probabilities
from rayface.curate.prune import selection as choose
from rayface.curate.prune.diffprob import diffprob_for_keep, true_class_probabilities
from rayface.curate.prune.selection import Chooser, Rule
from rayface.embedding.embeddings import open_embeddings, write_part
from rayface.training.checkpointing import tools as checkpoint_tools
from rayface.training.checkpointing.tools import SavedCenters

SIZE = 8


@pytest.fixture
def chooser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Chooser]:
    """Makes a chooser of drawn identities of given sizes, in partitions of so many rows; parts run here, one by one."""

    def map_unordered(work: Callable[[Any], Any], parts: Sequence[Any], *phase: Any, **of: Any) -> Iterator[Any]:
        yield from map(work, parts)

    for module in (choose, class_probabilities, partitions):
        monkeypatch.setattr(module, "map_unordered", map_unordered)
    monkeypatch.setattr(choose, "ray", types.SimpleNamespace(put=lambda value: value, get=lambda value: value))

    def make(sizes: Sequence[int], block: int) -> Chooser:
        random = np.random.default_rng(0)
        labels = np.repeat(np.arange(len(sizes)), sizes)
        vectors = random.standard_normal((len(sizes), SIZE))[labels]
        vectors += random.standard_normal(vectors.shape) * random.uniform(0.4, 1.2, (len(labels), 1))
        batch = ([f"k{row:06d}" for row in range(len(labels))], labels, vectors)
        (tmp_path / "emb").mkdir(exist_ok=True)
        write_part(str(tmp_path / "emb" / "0.parquet"), [batch], size=SIZE, dtype="fp32", note={})
        source = open_embeddings(tmp_path / "emb")
        found = partition_by_identity(source, tmp_path / "runs", 4 * SIZE * block)
        return Chooser(found, tmp_path / "decisions")

    return make


def test_probabilities_are_computed_once_and_centers_read_once(
    chooser: Callable[..., Chooser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By search, decisions and comparison together; the choice is that of all faces at once."""
    sizes = np.random.default_rng(1).geometric(0.1, 40)
    centers = torch.from_numpy(np.random.default_rng(2).standard_normal((40, SIZE)).astype(np.float32))
    read: list[tuple[int, int]] = []
    computed: list[int] = []

    def rows(first: int, last: int) -> torch.Tensor:
        read.append((first, last))
        return centers[first:last]

    def probabilities(*arguments: Any, **options: Any) -> Any:
        computed.append(len(arguments[2]))
        return true_class_probabilities(*arguments, **options)

    saved = SavedCenters(num_classes=40, width=SIZE, read=rows)
    monkeypatch.setattr(checkpoint_tools, "saved_centers", lambda run: saved)
    monkeypatch.setattr(class_probabilities, "true_class_probabilities", probabilities)
    mine = chooser(sizes, 60)
    rule = mine.search(0.6, Rule(method="diffprob", min_images=2, head=str(tmp_path / "run"), scale=8.0))
    kept = mine.decide(rule)
    random = Rule(method="random", keep=0.6)
    chosen = Rule(method="face_nms", threshold=0.5)
    mine.decide(chosen)
    compared = mine.compare(chosen, {"diffprob": rule, "random": random})
    assert len(computed) > 3
    assert sum(computed) == sum(sizes)
    assert read == [(0, 40)]
    everything = [read_partition(partition) for partition in mine._pieces.partitions]
    vectors = np.concatenate([part.embeddings for part, _ in everything])
    labels = np.concatenate([part.labels for part, _ in everything])
    own = true_class_probabilities(lambda first, last: centers[first:last], 40, vectors, labels, scale=8.0)
    found, _ = diffprob_for_keep(own, np.r_[0, np.cumsum(sizes)], 0.6, min_images=2)
    decided = np.concatenate([table["kept"].to_numpy() for table in mine.decisions(rule)])
    assert abs(kept / sum(sizes) - 0.6) <= 0.005
    assert (decided == found.kept).mean() > 0.98  # another threshold that keeps as many
    assert compared["diffprob"]["faces"] == kept
    assert not list((tmp_path / "decisions").glob("*/centers.npy"))


def test_centers_of_another_length_are_refused(
    chooser: Callable[..., Chooser], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = SavedCenters(num_classes=9, width=4, read=lambda first, last: torch.ones(last - first, 4))
    monkeypatch.setattr(checkpoint_tools, "saved_centers", lambda run: saved)
    rule = Rule(method="diffprob", threshold=0.1, head=str(tmp_path / "run"), scale=8.0)
    with pytest.raises(ValueError, match=r"--head: .*run: its class centers are of length 4, the embeddings of 8"):
        chooser([3] * 9, 20).decide(rule)


@pytest.mark.parametrize("large", [0, 1])
def test_a_very_large_identity_does_not_fill_the_sample(
    chooser: Callable[..., Chooser], monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    """Of 20 seeds all held it whole; without one, the sample is what it was."""
    monkeypatch.setattr(choose, "_SAMPLE_FACES", 1000)
    sizes = [20] * 150 + [2000] * large
    mine = chooser(sizes, 400)
    for seed in range(20):
        sample = mine._sample(Rule(method="face_nms", seed=seed))
        assert sample is not None
        rows, offsets, _ = sample
        assert np.diff(offsets).max() == 20
        assert len(rows.labels) == offsets[-1]
        assert 800 <= len(rows.labels) <= 1000 + 8 * 20
    rule = mine.search(0.6, Rule(method="face_nms"))
    assert abs(mine.decide(rule) / sum(sizes) - 0.6) <= 0.005


def test_where_every_identity_is_large_all_faces_are_searched(
    chooser: Callable[..., Chooser], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "_SAMPLE_FACES", 500)
    mine = chooser([300, 400, 500], 200)
    assert mine._sample(Rule(method="face_nms")) is None
    rule = mine.search(0.6, Rule(method="face_nms"))
    assert abs(mine.decide(rule) / 1200 - 0.6) <= 0.005
