"""Which compiled passes a device has."""

import torch

from rayface.heads.fused_rows import FusedRowPasses
from rayface.heads.row_kernels import RowPasses
from rayface.heads.row_passes import row_passes


def test_row_passes_of_a_device_are_those_of_its_compiler() -> None:
    """Other devices than CPUs have none unless the head is fused."""
    assert isinstance(row_passes(torch.device("cpu"), fused=False), RowPasses)
    assert isinstance(row_passes(torch.device("cuda"), fused=True), FusedRowPasses)
    assert row_passes(torch.device("cuda"), fused=False) is None
