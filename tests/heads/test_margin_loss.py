"""The loss of Partial FC: on 1, 2 and 3 gloo processes against the float64 oracle, under autocast, in 16 bits."""

import pytest
import torch
from torch import Tensor

from rayface.heads import MARGINS, PartialFC, build_margin
from tests.heads import head_oracle
from tests.heads.head_ranks import assert_solved, solve_on_ranks
from tests.heads.small_head import batch, small_head, train


def test_loss_without_gradients_equals_and_leaves_nothing_to_step_with() -> None:
    head = small_head()
    with torch.no_grad():
        value = head.loss(*batch())
    assert value.item() == pytest.approx(head.loss(*batch()).item(), rel=1e-6)
    with pytest.raises(RuntimeError, match="call loss"):
        head.step(0.1)


def test_loss_of_constant_embeddings_trains_the_class_centers() -> None:
    head = small_head(sample_rate=1.0)
    x, y = batch()
    losses = []
    for _ in range(30):
        value = head.loss(x.detach(), y)
        value.backward()
        head.step(1.0)
        losses.append(value.item())
    assert losses[-1] < losses[0] / 2


def test_backward_after_a_step_raises_one_line() -> None:
    """The class centers that the loss was taken with have moved."""
    head = small_head()
    value = head.loss(*batch())
    train(head, 1)
    with pytest.raises(RuntimeError, match=r"before the last head\.step"):
        value.backward()


def test_loss_under_autocast_computes_in_fp32() -> None:
    """With bf16 embeddings, which get a bf16 gradient."""
    plain, inside = small_head(), small_head()
    x, y = batch()
    x = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = inside.loss(x, y)
    value.backward()
    assert value.item() == plain.loss(x.float(), y).item()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("special", ["zeros", "duplicates", "aligned", "one range"])
@pytest.mark.parametrize("margin", sorted(MARGINS))
@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16])
def test_loss_of_extreme_16_bit_embeddings_stays_finite(special: str, margin: str, given: torch.dtype) -> None:
    """Losses, gradients and state, with bf16 products and storage, for every margin; one class too."""
    for classes in (37, 1):
        case = head_oracle.Case(f"{special} {margin}", num_classes=classes, special=special, norm=20.0)
        centers = torch.randn(classes, case.width, generator=torch.Generator().manual_seed(1))
        types = {"compute_dtype": "bf16", "storage_dtype": "bf16"}
        head = PartialFC(case.width, classes, build_margin(margin), sample_rate=0.5 if classes > 1 else 1.0, **types)
        centers[3 % classes] = 0  # a center without a direction as well
        head.load_centers(centers)
        if special == "aligned" and classes == 1:
            continue  # needs another class to be aligned with
        for x, y in case.batches(centers.double()):
            x = x.to(given).requires_grad_()
            value = head.loss(x, y)
            value.backward()
            head.step(0.1)
            assert torch.isfinite(value)
            assert torch.isfinite(x.grad).all()
            assert all(torch.isfinite(v).all() for v in head.state().values() if isinstance(v, Tensor))


def test_oracle_against_finite_differences_is_right() -> None:
    """The oracle of the other tests is itself held against finite differences."""
    case = head_oracle.Case(
        "finite differences", margin="combined", margin_args={"m1": 1.2, "m2": 0.2, "gradient": "exact"}
    )
    centers = case.centers()
    x, y = case.batches(centers)[0]
    everything = torch.ones(case.num_classes, dtype=torch.bool)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head_oracle.loss(case, x, y, centers, everything, {}), (x,), atol=1e-4)


CASES = {case.name: case for case in head_oracle.cases()}


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """Return a function that runs all cases on W processes, once."""
    done: dict[int, list[dict]] = {}

    def run(world_size: int) -> list[dict]:
        if world_size not in done:
            folder = tmp_path_factory.mktemp(f"ranks{world_size}")
            done[world_size] = solve_on_ranks(folder, world_size, "chunked")
        return done[world_size]

    return run


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_head_on_several_ranks_equals_the_oracle(solved, name: str, world_size: int) -> None:
    """Losses, embedding gradients, centers and moments."""
    assert_solved(CASES[name], [part[name] for part in solved(world_size)])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sampling_on_several_ranks_uses_the_share_of_each(solved, world_size: int) -> None:
    """Every rank uses int(r n) of its n rows, or all its positives where these are more."""
    case = CASES["arcface sparse sampled"]
    for rank, part in enumerate(solved(world_size)):
        rows = case.num_classes // world_size + (rank < case.num_classes % world_size)
        for used in part[case.name]["used"]:
            assert used.sum() >= int(0.3 * rows)
            assert used.sum() <= max(int(0.3 * rows), case.batch)


@pytest.mark.parametrize("name", CASES)
def test_step_on_two_ranks_calls_three_collectives(solved, name: str) -> None:
    """One all-gather, one all-reduce, one reduce-scatter; a maximum more where the scale is no safe bound.

    Rows that are fetched early need the labels of all ranks early: a gather more.
    """
    calls = solved(2)[0][name]["collectives"].tolist()
    extra = 1 if "large" in name else 0
    # CurricularFace must know the target cosines first; its second all-reduce replaces the reduce-scatter
    wanted = [1, 2 + extra, 0] if "curricular" in name else [1 + CASES[name].prefetch, 1 + extra, 1]
    assert calls == wanted
    assert solved(1)[0][name]["collectives"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_prefetched_on_several_ranks_change_no_bit(solved, world_size: int) -> None:
    """Losses, gradients and all state of every rank."""
    for part in solved(world_size):
        late, soon = part["rows read late"], part["rows read soon"]
        assert all(torch.equal(late[key], soon[key]) for key in late if key != "collectives")
