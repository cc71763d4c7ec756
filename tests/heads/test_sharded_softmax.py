"""The bound that saves the max collective, and the memory bound."""

import math

import pytest
import torch

from rayface.heads.margins import CosFace
from rayface.heads.sharded_softmax import exponent_base


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 1000, 100_000_000])
@pytest.mark.parametrize("scale", [1.0, 30.0, 64.0, 70.0, 300.0])
def test_base_is_safe_wherever_there_is_one(scale: float, classes: int, dtype: torch.dtype) -> None:
    """At the worst cosines, sum of all classes and smallest single term are finite and normal numbers."""
    base = exponent_base(CosFace(scale=scale), classes, dtype)
    if base is None:
        assert scale == 300.0
        assert dtype == torch.float32
        return
    info = torch.finfo(dtype)
    off = 1 + 1e-5  # a rounded cosine
    assert 2 * scale * off - base - scale + math.log(classes) < math.log(info.max)
    largest = torch.exp(torch.tensor(scale * off - base, dtype=dtype)) * classes
    smallest = torch.exp(torch.tensor(-scale * off - base, dtype=dtype))
    assert torch.isfinite(largest)
    assert smallest >= info.tiny


def test_usual_scale_needs_no_shift() -> None:
    """s = 64 with ten million classes in fp32: exp of the plain logits."""
    assert exponent_base(CosFace(scale=64.0), 10_000_000, torch.float32) == 0.0
    assert exponent_base(CosFace(scale=128.0), 10_000_000, torch.float32) is None
