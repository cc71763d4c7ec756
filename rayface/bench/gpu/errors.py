"""Errors of two devices against float64, and whether they agree."""

from collections.abc import Sequence

import torch
from torch import Tensor

_FACTOR = 4.0  # as much worse than the CPU in the same types a GPU may be: it sums in another order
_MOST = 0.8  # zeros have an error of 1


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Return |found - exact| / |exact| in float64 on the CPU; infinite for NaN."""
    found, exact = found.detach().double().cpu(), exact.detach().double().cpu()
    error = torch.linalg.vector_norm(found - exact) / torch.linalg.vector_norm(exact).clamp_min(1e-300)
    return float(error.nan_to_num(nan=torch.inf))


def as_good(device: Sequence[float], cpu: Sequence[float], floor: float) -> bool:
    """Return whether every error of the device is at most a few times the CPU's, or below `floor`."""
    return all(mine <= max(floor, min(_MOST, _FACTOR * other)) for mine, other in zip(device, cpu, strict=True))
