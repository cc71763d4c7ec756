"""What a selection method can know of all images."""

from collections.abc import Callable

import numpy as np
import pytest

from rayface.curate.cosines import unit_rows
from rayface.curate.partitions import read_partition
from rayface.curate.prune import dataset_stats
from rayface.curate.prune.selection import Selector
from rayface.storage import DataError


def test_stats_of_several_partitions_are_those_of_all_images(make_selector: Callable[..., Selector]) -> None:
    stats = make_selector([3, 5, 2, 8, 1], 6).stats
    assert len(stats.partitions.partitions) > 2
    assert (stats.labels.tolist(), stats.sizes.tolist()) == ([0, 1, 2, 3, 4], [3, 5, 2, 8, 1])
    parts = [read_partition(partition)[0].embeddings for partition in stats.partitions.partitions]
    vectors = np.concatenate(parts)
    np.testing.assert_allclose(stats.mean_direction, unit_rows(vectors, np.arange(19)).mean(axis=0), atol=1e-12)


def test_mean_direction_asked_for_twice_is_computed_once(
    make_selector: Callable[..., Selector], monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = make_selector([3, 5], 6).stats
    first = stats.mean_direction
    monkeypatch.setattr(dataset_stats, "map_unordered", None)  # would fail
    assert stats.mean_direction is first


def test_mean_direction_of_a_bad_embedding_names_it(
    make_selector: Callable[..., Selector], monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = make_selector([3, 5], 6).stats

    def corrupt(partition: object) -> None:
        raise DataError("0.parquet: embedding of k003: is all zeros")

    monkeypatch.setattr(dataset_stats, "read_partition", corrupt)
    with pytest.raises(DataError, match=r"^0.parquet: embedding of k003: is all zeros$"):
        _ = stats.mean_direction
