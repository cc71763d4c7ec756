"""Selecting partition by partition, without Ray: the sample that a threshold is searched on; decisions made once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from rayface.config import PruneConfig
from rayface.curate.identities import Selection
from rayface.curate.prune import selection as module
from rayface.curate.prune.dataset_stats import DatasetStats
from rayface.curate.prune.methods.face_nms import FaceNMS
from rayface.curate.prune.methods.random import Random
from rayface.curate.prune.selection import Selector
from rayface.curate.prune.selection_method import Images, SelectionMethod

MakeSelector = Callable[..., Selector]


@dataclass(frozen=True, kw_only=True)
class First(SelectionMethod[int]):
    """Keep the first images of every identity, as many as the smallest identity has."""

    reason: ClassVar[str] = "not first"
    selected: ClassVar[list[int]] = []

    @classmethod
    def from_settings(cls, settings: PruneConfig) -> Self:
        return cls()

    def prepare(self, stats: DatasetStats) -> int:
        return int(stats.sizes.min())

    def select(self, images: Images, prepared: int) -> Selection:
        self.selected.append(images.part)
        sizes = np.diff(images.offsets)
        place = np.arange(len(images.rows)) - np.repeat(images.offsets[:-1], sizes)
        none = np.full(len(place), -1)
        return Selection(place < prepared, -place.astype(np.float32), none)


def test_decide_by_a_method_of_ones_own_writes_its_decisions_once(make_selector: MakeSelector) -> None:
    First.selected.clear()
    mine = make_selector([5, 3, 9, 4], 6)
    assert mine.decide(First()) == 4 * 3
    parts = len(mine.stats.partitions.partitions)
    assert sorted(First.selected) == list(range(parts))
    rows = [row for table in mine.decisions(First()) for row in table.to_pylist()]
    assert [row["label"] for row in rows if row["kept"]] == np.repeat(np.arange(4), 3).tolist()
    assert {row["reason"] for row in rows} == {"kept", "not first"}
    assert mine.decide(First()) == 4 * 3
    assert len(First.selected) == parts


def test_decide_in_other_partitions_keeps_the_same_images(make_selector: MakeSelector) -> None:
    sizes = np.random.default_rng(1).geometric(0.1, 40).tolist()
    method = FaceNMS(threshold=0.6, global_weight=0.5)
    whole, cut = make_selector(sizes, 10_000), make_selector(sizes, 30)
    assert len(whole.stats.partitions.partitions) == 1 < len(cut.stats.partitions.partitions)

    def decided(selector: Selector) -> list[dict[str, Any]]:
        selector.decide(method)
        return [row for table in selector.decisions(method) for row in table.to_pylist()]

    first = decided(whole)
    for path in whole.folder_of(method).local().iterdir():
        path.unlink()
    assert decided(cut) == first


@pytest.mark.parametrize("large", [0, 1])
def test_sample_beside_a_very_large_identity_leaves_it_out(
    make_selector: MakeSelector, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    """It would fill the sample; without such an identity the sample is the same as before."""
    monkeypatch.setattr(module, "_SAMPLE_IMAGES", 1000)
    sizes = [20] * 150 + [2000] * large
    for seed in range(20):
        sample = make_selector(sizes, 400, seed=seed)._sample
        assert max(np.diff(images.offsets).max() for images in sample) == 20
        num_images = sum(len(images.labels) for images in sample)
        assert num_images == sum(images.offsets[-1] for images in sample)
        assert 800 <= num_images <= 1000 + 8 * 20
    mine = make_selector(sizes, 400)
    method = mine.fit(FaceNMS(), 0.6)
    assert abs(mine.decide(method) / sum(sizes) - 0.6) <= 0.005


def test_fit_where_every_identity_is_large_searches_all_images(
    make_selector: MakeSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAMPLE_IMAGES", 500)
    mine = make_selector([300, 400, 500], 200)
    assert mine._sample == []
    method = mine.fit(FaceNMS(), 0.6)
    assert abs(mine.decide(method) / 1200 - 0.6) <= 0.005


def test_fit_without_a_threshold_or_a_share_returns_the_method(make_selector: MakeSelector) -> None:
    mine = make_selector([3, 4], 20)
    assert mine.fit(Random(keep=0.5), 0.5) == Random(keep=0.5)
    assert mine.fit(FaceNMS(threshold=0.3), None) == FaceNMS(threshold=0.3)
