"""Class centers: ranges of ranks, the initial matrix, rounding, host memory."""

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from rayface.heads.class_centers import (
    INIT_BLOCK,
    NOISE_SIZE,
    CenterOptimizer,
    ClassCenters,
    StochasticRounding,
    class_range,
    initial_rows,
    inverse_norms,
)


@pytest.mark.parametrize(("classes", "ranks"), [(10, 3), (2, 5), (1, 1), (9000, 4)])
def test_class_range_over_any_number_of_ranks_is_contiguous_and_even(classes: int, ranks: int) -> None:
    """Every class has one rank; sizes differ by one at most, larger first."""
    ranges = [class_range(classes, ranks, rank) for rank in range(ranks)]
    assert [c for first, last in ranges for c in range(first, last)] == list(range(classes))
    sizes = [last - first for first, last in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_initial_rows_of_several_ranks_equal_those_of_one(dtype: torch.dtype) -> None:
    """Three ranks draw the rows that one draws, across the borders of the keyed blocks."""
    classes = 2 * INIT_BLOCK + 100
    whole = torch.empty(classes, 3, dtype=dtype)
    initial_rows(0, classes, 3, 7, whole)
    for rank in range(3):
        first, last = class_range(classes, 3, rank)
        part = torch.empty(last - first, 3, dtype=dtype)
        initial_rows(first, last, 3, 7, part)
        assert torch.equal(part, whole[first:last])
    assert whole.float().std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(whole.float().mean().item()) < 3e-4
    assert whole.unique(dim=0).shape[0] == classes or dtype == torch.bfloat16


def centers(optimizer: str = "sgd", momentum: float = 0.9, weight_decay: float = 1e-2, **changes) -> ClassCenters:
    """Return a small store of ones."""
    rates = {"momentum": momentum, "weight_decay": weight_decay}
    settings = {
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "host_memory": False,
        "seed": 0,
    }
    store = ClassCenters(50, 8, optimizer=CenterOptimizer(name=optimizer, **rates), **(settings | changes))
    store.values.copy_(torch.linspace(-1, 1, 400).view(50, 8))
    return store


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("block", [slice(3, 20), torch.tensor([0, 4, 5, 49])])
def test_update_in_host_memory_moves_the_same_rows(optimizer: str, block) -> None:
    """Staged reads and writes end where in-place ones do, and touch no other row."""
    near, far = centers(optimizer=optimizer), centers(optimizer=optimizer, host_memory=True)
    before = near.values.clone()
    gradient = torch.randn(near.values[block].shape, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        near.update(block, gradient.clone(), 0.1)
        far.update(block, gradient.clone(), 0.1)
    assert torch.equal(near.values, far.values)
    for name in near.moments:
        assert torch.equal(near.moments[name], far.moments[name])
    still = torch.ones(50, dtype=torch.bool)
    still[block] = False
    assert torch.equal(near.values[still], before[still])
    assert (near.values[~still] != before[~still]).any(1).all()


class Written(TorchFunctionMode):
    """Records the memory of rows that are written to the storage."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.index_copy_:
            self.places.append(args[3].data_ptr())
        return func(*args, **(kwargs or {}))


def test_update_in_host_memory_writes_rows_of_another_type_from_memory_that_it_holds() -> None:
    store = centers(optimizer="adamw", host_memory=True, dtype=torch.bfloat16)
    block = torch.tensor([0, 4, 5, 49])
    for _ in range(2):
        with Written() as written:
            store.update(block, torch.ones(4, 8), 0.1)
        names = ("centers", "exp_avg", "exp_avg_sq")
        assert written.places[:3] == [store._staging.get(name, (4, 8), torch.bfloat16).data_ptr() for name in names]


def test_stochastic_rounding_between_bf16_neighbours_has_the_exact_mean() -> None:
    """A value between two bf16 neighbours goes up as often as it is near the upper one."""
    value = 1.0 + 0.3 * 2**-7
    rounding = StochasticRounding(0, 256, torch.device("cpu"))
    rows = torch.full((400, 256), value)
    rounding.round_(rows, slice(0, 400), "centers")
    assert set(rows.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert rows.mean().item() == pytest.approx(value, abs=5e-5)
    assert torch.equal(rows, rows.bfloat16().float())


def test_update_below_the_resolution_of_bf16_storage_adds_up() -> None:
    """Four hundred updates below bf16's resolution; rounding to nearest would stand still."""
    store = centers(dtype=torch.bfloat16, momentum=0.0, weight_decay=0.01)
    store.values.fill_(1.0)
    for step in range(400):
        store.begin_step(step)
        store.update(slice(0, 50), torch.zeros(50, 8), 0.1)  # decay alone: times 0.999
    assert store.values.float().mean().item() == pytest.approx(0.999**400, rel=0.01)


def rounded(
    rows: torch.Tensor, block, *, step: int = 17, first: int = 0, seed: int = 3, name: str = "momentum"
) -> torch.Tensor:
    rounding = StochasticRounding(seed, rows.shape[1], torch.device("cpu"), first)
    rounding.step = step
    rows = rows.clone()
    rounding.round_(rows, block, name)
    return rows


def test_stochastic_rounding_of_a_row_in_any_block_depends_on_seed_step_tensor_and_class_alone() -> None:
    rows = torch.randn(3000, 700, generator=torch.Generator().manual_seed(0))  # more numbers than the noise has
    whole = rounded(rows, slice(0, 3000))
    some = torch.tensor([0, 7, 1499, 2999])
    assert torch.equal(rounded(rows[some], some), whole[some])
    assert torch.equal(rounded(rows[1000:2000], slice(0, 1000), first=1000), whole[1000:2000])
    assert not torch.equal(rounded(rows, slice(0, 3000), step=18), whole)
    assert not torch.equal(rounded(rows, slice(0, 3000), seed=4), whole)
    assert not torch.equal(rounded(rows, slice(0, 3000), name="centers"), whole)


def test_stochastic_rounding_of_rows_wider_than_the_noise_has_the_exact_mean() -> None:
    rows = torch.full((2, NOISE_SIZE + 1000), 1.0 + 0.25 * 2**-7)
    assert rounded(rows, slice(0, 2)).mean().item() == pytest.approx(1.0 + 0.25 * 2**-7, abs=1e-6)


def test_inverse_norms_of_rows_shorter_than_a_trillionth_are_zero() -> None:
    rows = torch.tensor([[3e-9, 4e-9], [6e-13, 8e-14], [0.0, 0.0], [3.0, 4.0]])
    assert inverse_norms(rows).flatten().tolist() == pytest.approx([2e8, 0.0, 0.0, 0.2])
