"""The Triton passes over rows of class centers, in the interpreter: against the compiled passes of the CPU."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rayface.heads.class_centers import NOISE_SIZE
from rayface.heads.fused_rows import FusedRowPasses, padded_width
from rayface.heads.row_kernels import RowPasses
from rayface.heads.row_passes import RowSgd
from tests.heads.test_row_kernels import BLOCKS, filled

TYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("out_dtype", TYPES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_fused_unit_rows_equal_the_compiled_ones(dtype: torch.dtype, out_dtype: torch.dtype, block) -> None:
    """bf16 to the bit; row 4 has no direction."""
    values = filled(dtype, 0)
    wanted = torch.empty(len(values[block]), 33, dtype=out_dtype)
    found = torch.empty_like(wanted)
    RowPasses().unit_rows(values, block, wanted)
    FusedRowPasses().unit_rows(values, block, found)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7 if out_dtype == torch.float32 else 0)
    assert (found[values[block].double().norm(dim=1) == 0] == 0).all()


@pytest.mark.parametrize("passes", [RowPasses(), FusedRowPasses()], ids=["compiled", "fused"])
def test_unit_rows_shorter_than_a_trillionth_are_zero(passes: RowPasses | FusedRowPasses) -> None:
    """As `inverse_norms` has it."""
    rows = torch.tensor([[3e-9, 4e-9], [6e-13, 8e-14], [0.0, 0.0], [3.0, 4.0]])
    out = torch.empty(4, 2)
    passes.unit_rows(rows, slice(0, 4), out)
    torch.testing.assert_close(out, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0], [0.6, 0.8]]))


def test_fused_unit_rows_of_a_row_that_is_not_finite_are_not_finite() -> None:
    values = filled(torch.float32, 0)
    values[3, 0], values[9, 1] = torch.nan, torch.inf
    out = torch.empty(7, 33, dtype=torch.bfloat16)
    with np.errstate(invalid="ignore"):
        FusedRowPasses().unit_rows(values, BLOCKS["rows"], out)
    assert out[1].isnan().all()
    assert not out[3].isfinite().all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_fused_sgd_rows_equal_the_compiled_ones(dtype: torch.dtype, block, momentum: float) -> None:
    """With the same stochastic rounding; other rows keep their bits."""
    gradient = filled(torch.float32, 3, len(filled(dtype, 1)[block]))
    pool = torch.randint(65536, (NOISE_SIZE + 33,), dtype=torch.int32, generator=torch.Generator().manual_seed(4))
    noise = (pool, 5, NOISE_SIZE - 300) if dtype == torch.bfloat16 else None
    sgd = RowSgd(lr=0.1, momentum=momentum, weight_decay=0.01, noise=noise)

    def moved(passes: RowPasses | FusedRowPasses) -> tuple[Tensor, Tensor]:
        values, velocity = filled(dtype, 1), filled(dtype, 2)
        passes.sgd_rows(values, velocity if momentum else None, block, gradient, sgd)
        return values, velocity

    off = 1e-6 if dtype == torch.float32 else 2**-6  # sums in another order may fall on the other side of a step
    for found, wanted in zip(moved(FusedRowPasses()), moved(RowPasses()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=off, atol=off)
        assert (found != wanted).float().mean() < 0.02 or dtype != torch.bfloat16
        still = torch.ones(50, dtype=torch.bool)
        still[block] = False
        assert torch.equal(found[still], wanted[still])


@pytest.mark.parametrize(("width", "padded"), [(1, 16), (16, 16), (17, 32), (512, 512)])
def test_padded_width_is_a_power_of_two_that_a_product_takes(width: int, padded: int) -> None:
    assert padded_width(width) == padded
