"""Selection of the compiled passes over rows of class centers for a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rayface.heads.fused_rows import FusedRowPasses
    from rayface.heads.row_kernels import RowPasses

    AnyRowPasses: TypeAlias = RowPasses | FusedRowPasses


@dataclass(frozen=True, kw_only=True)
class RowSgd:
    """One update by SGD."""

    lr: float
    momentum: float
    weight_decay: float
    noise: tuple[Tensor, int, int] | None
    """For bf16, which is rounded stochastically (see `StochasticRounding`): int32 in [0, 65536), (NOISE_SIZE + D,), and
    where the noise of row 0 of momentum and of values begins in it."""


def row_passes(device: torch.device, *, fused: bool) -> AnyRowPasses | None:
    """Return numba's passes for a CPU, Triton's for a fused head, or None for torch's operations.

    Each is imported only when used: numba takes 60 MB and a second.
    """
    if fused:
        from rayface.heads.fused_rows import FusedRowPasses

        return FusedRowPasses()
    if device.type == "cpu":
        from rayface.heads.row_kernels import RowPasses

        return RowPasses()
    return None
