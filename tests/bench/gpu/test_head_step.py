"""The head's step is measured at the sizes that are asked for."""

from dataclasses import replace

import pytest
import torch

from rayface.bench.gpu.case import Kit
from rayface.bench.gpu.head_roads import RATES, ROADS
from rayface.bench.gpu.head_step import MINI, cases, measure


def test_cases_of_the_head_step_begin_with_partial_fc_at_every_rate() -> None:
    names = [case.name for case in cases(Kit(device="cuda", mini=False))]
    assert names[:3] == [f"r {rate:g}, partial_fc" for rate in RATES]
    assert sum("straightforward" in name for name in names) == len(RATES)
    assert len(set(names)) == len(names)


def test_cases_of_the_fused_head_are_on_cuda_only() -> None:
    """Elsewhere its kernels would be interpreted."""
    for device, count in (("cuda", len(RATES) + 2), ("cpu", 0)):
        names = [case.name for case in cases(Kit(device=device, mini=True))]
        assert sum("fused" in name for name in names) == count


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.name)
def test_measure_of_a_road_gives_times_and_their_ratio(road) -> None:
    sizes = replace(MINI, num_classes=40) if road.only_cuda else MINI  # the interpreter takes its time
    found = measure(road, sizes, road.rates[0], "cpu")
    assert found.step_ms == pytest.approx(found.loss_ms + found.update_ms)
    assert found.ratio == pytest.approx(found.step_ms / found.products_ms)
    assert found.products_tflops > 0
    assert (found.peak_gb, found.syncs) == (None, None)
    assert torch.is_grad_enabled()
