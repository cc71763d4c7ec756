"""Face-NMS and the search for pairs are measured and confirmed."""

import numpy as np
import pytest

from rayface.bench.gpu import curation
from rayface.bench.gpu.curation import nms_rate, pair_rate, same_pairs


def test_nms_rate_on_drawn_images_agrees_with_the_double_loop() -> None:
    found = nms_rate(600)
    assert found.passed
    assert 0 < found.kept < 1
    assert found.images_per_s > 0


def test_pair_rate_finds_the_planted_pairs() -> None:
    found = pair_rate(500, "cpu")
    assert found.passed
    assert found.pairs_found == 10
    assert found.tflops == pytest.approx(found.pairs_per_s * 1024 / 1e12)


def test_same_pairs_when_a_device_misses_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_pairs(200, "cpu").passed

    class Missing(curation.PairSearch):
        def __call__(self, tile):
            left, right, cosines = super().__call__(tile)
            lost = np.arange(len(left)) >= (self._device == "cpu:0")
            return left[lost], right[lost], cosines[lost]

    monkeypatch.setattr(curation, "PairSearch", Missing)
    assert not same_pairs(200, "cpu:0").passed
