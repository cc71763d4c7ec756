"""Whole training steps are measured part by part, and held against the bars."""

from dataclasses import replace

import pytest

from rayface.bench.gpu.case import Kit
from rayface.bench.gpu.train_speed import BARS, MINI, cases, measure

TINY = replace(MINI, image_size=16, embedding_size=8, batch_size=4)


def test_measure_of_training_steps_adds_up_its_parts() -> None:
    found = measure(TINY, "cpu", repeats=1)
    parts = found.forward_ms + found.head_loss_ms + found.backward_ms + found.update_ms
    assert 0 < parts <= found.step_ms  # which also has what is between the parts
    assert found.images_per_s == pytest.approx(4e3 / found.step_ms)
    assert found.tflops > 0
    assert (found.bar, found.syncs, found.peak_gb) == ("", None, None)


def test_verdict_at_the_bars_names_the_highest_that_is_reached() -> None:
    bars = BARS["r50"]
    verdicts = [bars.verdict(rate) for rate in (1929, 1930, 2640, 3999, 4000)]
    assert [verdict.partition(",")[0] for verdict in verdicts] == ["below", "floor", "good", "good", "excellent"]
    assert BARS["r100"].verdict(926) == "floor, 2.00 x A100"


def test_cases_of_training_steps_begin_with_the_four_nets_uncompiled() -> None:
    names = [case.name for case in cases(Kit(device="cuda", mini=False))]
    assert names[:4] == [f"{net}, batch 128" for net in ("r50", "r100", "vit_s", "mbf")]
    assert {f"{net}, compiled, batch 128" for net in ("r50", "r100", "vit_s", "mbf")} < set(names)
    assert len(set(names)) == len(names)
