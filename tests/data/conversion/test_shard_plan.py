"""Cutting the final order into shards, by sizes and limits."""

from pathlib import Path

import numpy as np
import pytest

from rayface.data.conversion import listing
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.shard_plan import ShardPlan, plan_shards
from rayface.data.conversion.spill import Record, read_records
from rayface.data.conversion.work_folder import WorkFolder
from rayface.storage import DataError
from tests.data.conversion.work import images, spilled, work_folder
from tests.data.sources.in_memory import InMemory


def shard(plan: ShardPlan, number: int) -> list[list[Record]]:
    """Return the records of each block of a shard."""
    blocks = []
    for block in plan.blocks(number):
        parts = [Path(path).read_bytes()[first : first + size] for path, first, size in block]
        blocks.append(sorted(record for part in parts for record in read_records(part)))
    return blocks


def planned(
    path: Path, settings: ConvertSettings, *, piece_bytes: int = 1 << 20, block_bytes: int = 1 << 20
) -> tuple[ShardPlan, WorkFolder]:
    work = work_folder(path)
    found = spilled(work, InMemory([images(20), images(20, first=20)]), settings, piece_bytes)
    return plan_shards(found, work, settings, block_bytes=block_bytes), work


@pytest.mark.parametrize("layout", ["shuffled", "by_identity"])
def test_plan_shards_holds_every_image_once_in_order_and_within_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setattr(listing, "UNIT_IMAGES", 7)
    settings = ConvertSettings(layout=layout, shard_size=12_000)  # type: ignore[arg-type]
    plan, _ = planned(tmp_path, settings, piece_bytes=2500, block_bytes=4000)
    shards = [shard(plan, number) for number in range(len(plan))]
    assert len(plan) > 3
    assert max(map(len, shards)) > 1
    flat = [record for blocks in shards for block in blocks for record in block]
    assert flat == sorted(flat)
    assert sorted(record.key for record in flat) == sorted(f"k{n}".encode() for n in range(40))
    assert plan.counts.tolist() == [sum(map(len, blocks)) for blocks in shards]
    assert plan.readable.sum() == 40


def test_plan_shards_with_a_tiny_size_has_one_image_a_shard(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, ConvertSettings(shard_size=1))
    assert plan.counts.tolist() == [1] * 40


def test_plan_shards_with_min_images_leaves_small_identities_out(tmp_path: Path) -> None:
    work, settings = work_folder(tmp_path), ConvertSettings(min_images=3)
    given = [("a0", "ann", 2), ("b0", "bob", 3), ("c0", "cy", 4)]
    source = InMemory([[(f"{key}{n}", name, images(1)[0][2]) for key, name, count in given for n in range(count)]])
    found = spilled(work, source, settings)
    plan = plan_shards(found, work, settings)
    assert (plan.new_labels.tolist(), plan.readable.tolist(), plan.counts.tolist()) == ([-1, 0, 1], [2, 3, 4], [7])
    with pytest.raises(DataError, match=r"convert.min_images: 5: no identity has so many .* the largest has 4"):
        plan_shards(found, work, ConvertSettings(min_images=5))
    assert np.array_equal(plan.edges[:, 0], [0])
