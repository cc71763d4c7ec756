"""The measurement of the class layer runs and says what it measured."""

import pytest

from rayface.bench.head import bench_head


def test_measures_two_workers_and_the_straightforward_way() -> None:
    """Tiny sizes, all fields."""
    found = bench_head(600, 8, 0.5, workers=2, steps=1, embedding_size=16, straightforward=True)
    assert found["step_seconds"] > 0
    assert found["ratio"] == pytest.approx(found["step_seconds"] / found["products_seconds"])
    assert found["state_bytes"] == 2 * 300 * 16 * 4
    assert found["peak_bytes"] > found["state_bytes"]
    assert found["straightforward"]["step_seconds"] > 0


def test_bad_settings_get_one_line() -> None:
    """Said before any process starts."""
    with pytest.raises(ValueError, match=r"batch_size 7 must be a multiple of workers 2"):
        bench_head(100, 7, workers=2)
    with pytest.raises(ValueError, match=r"head\.sample_rate 2"):
        bench_head(100, 8, 2.0)
    with pytest.raises(ValueError, match=r"head\.compute_dtype 'int8'"):
        bench_head(100, 8, dtype="int8")
