"""The measurement of the head runs and says what it measured."""

import pytest

from rayface.bench.head import HeadBench, as_table, bench_head, bench_scaling


def test_bench_head_with_two_workers_measures_ours_and_the_straightforward_way() -> None:
    """Tiny sizes, all fields."""
    sizes = {"num_classes": 600, "batch_size": 8, "embedding_size": 16}
    found = bench_head(HeadBench(**sizes, sample_rate=0.5, workers=2, steps=1), straightforward=True).as_dict()
    assert found["step_seconds"] > 0
    assert found["ratio"] == pytest.approx(found["step_seconds"] / found["products_seconds"])
    assert found["state_bytes"] == 2 * 300 * 16 * 4
    assert found["peak_bytes"] > found["state_bytes"]
    assert found["straightforward"]["step_seconds"] > 0


def test_bench_head_with_a_bad_setting_raises_one_line() -> None:
    """Before any process starts."""
    with pytest.raises(ValueError, match=r"batch_size 7 must be a multiple of workers 2"):
        bench_head(HeadBench(num_classes=100, batch_size=7, workers=2))
    with pytest.raises(ValueError, match=r"head\.sample_rate 2"):
        bench_head(HeadBench(num_classes=100, batch_size=8, sample_rate=2.0))
    with pytest.raises(ValueError, match=r"head\.compute_dtype 'int8'"):
        bench_head(HeadBench(num_classes=100, batch_size=8, dtype="int8"))
    with pytest.raises(ValueError, match=r"head\.sample_rate 0 must be in \(0, 1\]"):
        bench_head(HeadBench(num_classes=100, batch_size=8, sample_rate=0))
    with pytest.raises(ValueError, match=r"sampled_rows: 101: must be from 1 to the smallest number of classes, 100"):
        bench_scaling([300, 100], HeadBench(num_classes=300, batch_size=8), sampled_rows=101)


@pytest.mark.long
def test_bench_scaling_over_class_counts_uses_the_same_number_of_rows() -> None:
    """One result each, and a table of them."""
    settings = HeadBench(num_classes=300, batch_size=8, steps=1, embedding_size=16)
    found = bench_scaling([300, 900], settings, sampled_rows=70)
    assert [one.settings.num_classes for one in found] == [300, 900]
    rows = as_table(found)
    assert [row["rows"] for row in rows] == ["70", "70"]
    assert [row["state GB"] for row in rows] == ["0.00", "0.00"]
