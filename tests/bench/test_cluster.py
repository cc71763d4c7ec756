"""The measurement of online clustering runs, and refuses bad settings before anything is drawn."""

import pytest

from rayface.bench.cluster import ClusterBench, ClusterMark, _projected, bench_cluster


@pytest.mark.long
def test_bench_cluster_measures_every_mark_of_one_stream() -> None:
    found = bench_cluster(ClusterBench(marks=(10_000, 12_000), embedding_size=32, images_per_identity=100))
    assert [mark.images for mark in found.marks] == [10_000, 12_000]
    assert all(mark.pairwise_f > 0.9 and mark.recall > 0.9 for mark in found.marks)
    assert all(0 < mark.comparisons < 5000 and mark.microseconds > 0 for mark in found.marks)
    assert found.projected_hours_42m > 0


def test_bench_cluster_projects_a_time_that_grows_with_the_logarithm() -> None:
    own = {"components": 1, "comparisons": 1.0, "recall": 1.0, "pairwise_f": 1.0, "peak_bytes": 1}
    flat = [ClusterMark(images=count, microseconds=50, **own) for count in (10_000, 100_000)]
    assert _projected(flat) == pytest.approx(50e-6 * 42_474_557)
    rising = [flat[0], ClusterMark(images=100_000, microseconds=60, **own)]
    assert 70e-6 < _projected(rising) / 42_474_557 < 87e-6


@pytest.mark.parametrize("marks", [(), (100,), (20_000, 10_000)])
def test_bench_cluster_of_bad_marks_is_refused(marks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be rising numbers"):
        bench_cluster(ClusterBench(marks=marks))
