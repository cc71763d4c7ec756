"""Times and synchronisations."""

import warnings

import pytest
import torch

from rayface.bench.gpu.measure import Laps, PeakMemory, count_syncs, median_laps, medians


def test_median_laps_leaves_the_warm_up_out() -> None:
    calls = []

    def work(laps: Laps) -> None:
        calls.append(len(calls))
        laps.mark()

    assert len(median_laps(work, "cpu", warm_up=2, repeats=3)) == 2
    assert len(calls) == 5
    assert medians([[1.0, 9.0], [2.0, 8.0], [30.0, 7.0]]) == [2.0, 8.0]


def test_count_syncs_counts_torch_warnings_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def work() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    found = count_syncs(work, "cuda")
    assert found.count == 3
    assert found.sites.startswith("test_measure.py:")
    assert found.sites.endswith("x3")
    assert modes == ["warn", "default"]


def test_measures_of_a_gpu_on_a_cpu_are_none() -> None:
    done = []
    assert count_syncs(lambda: done.append(1), "cpu").count is None
    assert done == [1]
    assert PeakMemory("cpu").gb is None
