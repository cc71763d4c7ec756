"""Parts of a job are sent to Ray Data in a bounded number of blocks."""

from typing import Any

import pytest
import ray

from rayface import ray_tasks as parts


@pytest.mark.parametrize(("count", "blocks"), [(3, 3), (10_000, 4096)])
def test_blocks_of_many_parts_are_bounded(count: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block costs the driver about 10 ms: 42,475 blocks cost 7 minutes."""
    seen: dict[str, int] = {}

    def from_items(items: list[Any], override_num_blocks: int) -> None:
        seen.update(items=len(items), blocks=override_num_blocks)

    monkeypatch.setattr(ray.data, "from_items", from_items)
    parts._blocks(range(count))
    assert seen == {"items": count, "blocks": blocks}
