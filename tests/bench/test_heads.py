"""The comparison of heads measures each of them and says which it leaves out."""

import pytest

from rayface.bench.heads import HEADS, HeadsBench, as_dicts, bench_heads


@pytest.mark.long
def test_bench_heads_measures_what_fits_and_states_what_the_rest_would_need() -> None:
    settings = HeadsBench(num_classes=1, batch_size=4, columns=16, embedding_size=8, steps=1, most_bytes=2000)
    found = bench_heads(settings, [1000])
    assert [(cost.head, cost.num_classes) for cost in found] == [(head, 1000) for head in HEADS]
    full, sampled, dcq, f2c = as_dicts(found)
    assert full["state_bytes"] == sampled["state_bytes"] == 2 * 4 * 1000 * 8
    assert full["step_seconds"] is sampled["peak_bytes"] is None
    assert dcq["state_bytes"] == 16 * (8 * 4 + 8) + 8 * 8 * 4
    assert f2c["state_bytes"] == 16 * (2 * 8 * 4 + 24) + 8 + 8 * 8 * 4
    assert dcq["step_seconds"] > 0
    assert f2c["lru_seconds"] > 0
    assert found[0].row()["step ms"] == "-"


def test_bench_heads_with_a_queue_that_batches_do_not_fill_raises_one_line() -> None:
    with pytest.raises(ValueError, match=r"^columns: 10: must be a multiple of batch_size 4$"):
        bench_heads(HeadsBench(num_classes=5, batch_size=4, columns=10), [5])
