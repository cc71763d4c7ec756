"""The compiled passes over rows of class centers, against the same arithmetic written out and against torch's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rayface.heads.class_centers import NOISE_SIZE, CenterOptimizer, ClassCenters
from rayface.heads.row_kernels import RowPasses
from rayface.heads.row_passes import RowSgd

BLOCKS = {"slice": slice(3, 20), "rows": torch.tensor([0, 3, 4, 9, 17, 30, 49])}
TYPES = [torch.float64, torch.float32, torch.bfloat16]


def filled(dtype: torch.dtype, seed: int, rows: int = 50) -> Tensor:
    """Random rows of 33 numbers, no multiple of a vector; row 4 is zero."""
    values = torch.randn(rows, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    values[4] = 0
    return values.to(dtype)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [*((t, t) for t in TYPES), (torch.float32, torch.bfloat16), (torch.float64, torch.bfloat16)],
    ids=str,
)
def test_unit_rows_of_any_type_are_the_normalised_rows(dtype: torch.dtype, out_dtype: torch.dtype, block) -> None:
    """Rounded to nearest where the type is bf16, as torch does; rows of zeros stay so."""
    values = filled(dtype, 0)
    wanted = F.normalize(values[block].double(), dim=1)
    out = torch.empty(wanted.shape, dtype=out_dtype)
    RowPasses().unit_rows(values, block, out)
    if out_dtype == torch.bfloat16:
        assert (out.double() - wanted).abs().max() <= 2**-9 * (1 + 1e-4)  # half a step below 1
        exact = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float32)
        rounded = torch.empty(2, 2, dtype=torch.bfloat16)
        RowPasses().unit_rows(exact, slice(0, 2), rounded)
        assert torch.equal(rounded, exact.bfloat16())
    else:
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=1e-15 if dtype == torch.float64 else 1e-6)
    assert (out[values[block].double().norm(dim=1) == 0] == 0).all()


def test_unit_rows_of_a_row_that_is_not_finite_are_not_finite() -> None:
    """A class center that diverged is not hidden, in bf16 either."""
    values = filled(torch.float32, 0)
    values[3, 0], values[9, 1] = torch.nan, torch.inf
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(7, 33, dtype=dtype)
        RowPasses().unit_rows(values, BLOCKS["rows"], out)
        assert out[1].isnan().all()
        assert not out[3].isfinite().all()


def moved(
    values: Tensor, velocity: Tensor, gradient: Tensor, noise: tuple[Tensor, int, int] | None, rows_of: Tensor
) -> None:
    """SGD with momentum .9, weight decay .01 and rate .1 in float64, of all rows, in place."""

    def stored(exact: Tensor, start: int, home: Tensor) -> Tensor:
        if noise is None:
            return exact.to(home.dtype)
        begins = [(start + row * exact.shape[1]) % NOISE_SIZE for row in rows_of.tolist()]
        added = torch.stack([noise[0][begin : begin + exact.shape[1]] for begin in begins])
        bits = exact.float().view(torch.int32) + added
        return bits.bitwise_and(-65536).view(torch.float32).to(home.dtype)

    rows = values.double().clone().requires_grad_()
    F.normalize(rows, dim=1).backward(gradient.double())
    assert rows.grad is not None
    rows.grad[values.double().norm(dim=1) == 0] = 0
    velocity.copy_(
        stored(velocity.double() * 0.9 + rows.grad + 0.01 * rows.detach(), noise[1] if noise else 0, velocity)
    )
    values.copy_(stored(rows.detach() - 0.1 * velocity.double(), noise[2] if noise else 0, values))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_sgd_rows_of_a_block_equal_autograd_and_sgd(dtype: torch.dtype, block, threads: int, monkeypatch) -> None:
    """Only the block's rows, with the gradient through w / |w|; bf16 up or down by the noise."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    values, velocity = filled(dtype, 1), filled(dtype, 2)
    math_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    gradient = filled(math_dtype, 3, len(values[block]))
    generator = torch.Generator().manual_seed(4)
    pool = torch.randint(65536, (NOISE_SIZE + 33,), dtype=torch.int32, generator=generator)
    noise = (pool, 5, NOISE_SIZE - 300) if dtype == torch.bfloat16 else None
    wanted_values, wanted_velocity = values[block].clone(), velocity[block].clone()
    moved(wanted_values, wanted_velocity, gradient, noise, torch.arange(50)[block])
    still = torch.ones(50, dtype=torch.bool)
    still[block] = False
    before = values[still].clone(), velocity[still].clone()
    sgd = RowSgd(lr=0.1, momentum=0.9, weight_decay=0.01, noise=noise)
    RowPasses().sgd_rows(values, velocity, block, gradient, sgd)
    # bf16: float32 and float64 may fall on two sides of a step, which is rare
    off = 1e-14 if dtype == torch.float64 else 1e-6 if dtype == torch.float32 else 2**-6
    for found, wanted in ((values[block], wanted_values), (velocity[block], wanted_velocity)):
        torch.testing.assert_close(found.double(), wanted.double(), rtol=off, atol=off)
        assert (found != wanted).float().mean() < 0.02 or dtype != torch.bfloat16
    assert torch.equal(values[still], before[0])
    assert torch.equal(velocity[still], before[1])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_class_centers_with_and_without_the_kernels_are_close(dtype: torch.dtype, block, momentum: float) -> None:
    """A GPU's store has no compiled passes."""

    def store() -> ClassCenters:
        optimizer = CenterOptimizer(momentum=momentum, weight_decay=1e-2)
        place = {"device": torch.device("cpu"), "host_memory": False, "seed": 0}
        made = ClassCenters(50, 33, optimizer=optimizer, dtype=dtype, **place)
        made.values.copy_(filled(dtype, 1))
        return made

    compiled, plain = store(), store()
    plain._passes = None
    for step in range(3):
        gradient = filled(compiled.math_dtype, step, len(compiled.values[block]))
        for each in (compiled, plain):
            each.begin_step(step)
            each.update(block, gradient.clone(), 0.1)
    off = 1e-14 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 2**-5
    torch.testing.assert_close(compiled.values, plain.values, rtol=off, atol=off)
    units = [each.read_units(block, torch.empty_like(compiled.values[block])) for each in (compiled, plain)]
    torch.testing.assert_close(*units, rtol=off, atol=off)
