"""Partial FC in one process: resume, types, class centers, what is refused."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from rayface.heads import ArcFace, PartialFC, build_margin
from tests.heads.small_head import C, D, batch, small_head, train


def test_head_resumed_from_its_state_repeats_the_run() -> None:
    """State of step 3 into a fresh head: the same rows, losses and centers as without a stop."""
    straight = small_head(margin=ArcFace(), seed=5)
    wanted = train(straight, 6)
    first = small_head(margin=ArcFace(), seed=5)
    train(first, 3)
    saved = {k: v.clone() if isinstance(v, Tensor) else v for k, v in first.state().items()}
    second = small_head(margin=ArcFace(), seed=5)
    second.load_state(saved)
    assert train(second, 3, start=3) == wanted[3:]
    assert torch.equal(second.centers, straight.centers)
    assert small_head(margin=ArcFace(), seed=6).centers.ne(straight.centers).any()


def test_rows_of_a_loss_depend_on_seed_rank_step_and_loss() -> None:
    def rows(place: tuple[int, int] = (0, 0), *, seed: int = 0, rank: int = 0) -> tuple[int, ...]:
        head = small_head(seed=seed)
        head.collectives.rank = rank
        chosen = head.choose_rows(torch.tensor([1, 2]), place)
        assert chosen is not None
        return tuple(chosen.tolist())

    assert rows() == rows()
    assert len({rows(), rows((1, 0)), rows((0, 1)), rows(seed=1), rows(rank=1)}) == 5
    few = small_head(num_classes=19, sample_rate=0.1).choose_rows(torch.tensor([], dtype=torch.int64), (0, 0))
    assert few is not None
    assert len(few) == 1  # of 1.9


def test_margins_of_a_loss_depend_on_step_and_loss_and_not_on_the_rank() -> None:
    def drawn(head: PartialFC) -> tuple[float, ...]:
        return tuple(torch.rand(3, generator=head.margin_generator()).tolist())

    head, other = small_head(), small_head()
    other.collectives.rank = 1
    assert drawn(head) == drawn(other)
    found = [drawn(head)]
    head.loss(*batch()).backward()
    found.append(drawn(head))
    head.step(0.1)
    found.append(drawn(head))
    assert len({*found, drawn(small_head(seed=1))}) == 4


def test_step_of_a_head_in_bf16_storage_keys_the_rounding_by_its_number() -> None:
    head = small_head(storage_dtype="bf16")
    for number in range(3):
        train(head, 1)
        assert head.store._rounding.step == number


@pytest.mark.parametrize("load", ["load_state", "load_centers"])
def test_state_or_centers_loaded_after_a_loss_drop_its_gradient(load: str) -> None:
    head = small_head()
    head.loss(*batch()).backward()
    getattr(head, load)(copy_of(small_head()) if load == "load_state" else torch.ones(C, D))
    with pytest.raises(RuntimeError, match=r"head\.step without a gradient"):
        head.step(0.1)


def test_head_resumed_from_a_float64_state_is_float64() -> None:
    first, second = small_head(), small_head()
    first.load_centers(torch.randn(C, D, dtype=torch.float64))
    train(first, 2)
    second.load_state(first.state())
    assert torch.equal(second.centers, first.centers)


def test_head_in_host_memory_equals_one_in_device_memory() -> None:
    near, far = small_head(), small_head(host_memory=True)
    assert train(near, 4) == train(far, 4)
    assert torch.equal(near.centers, far.centers)


@pytest.mark.parametrize("changes", [{"compute_dtype": "bf16"}, {"storage_dtype": "bf16"}])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_losses_in_bf16_stay_near_those_in_fp32(changes: dict, rate: float) -> None:
    """bf16 products or storage."""
    exact, near = train(small_head(sample_rate=rate), 8), train(small_head(sample_rate=rate, **changes), 8)
    assert near == pytest.approx(exact, rel=0.03)


def test_state_in_bf16_storage_takes_half_the_bytes() -> None:
    """Centers and momentum."""

    def size(head: PartialFC) -> int:
        return sum(v.numel() * v.element_size() for v in head.state().values() if isinstance(v, Tensor))

    assert 2 * size(small_head(storage_dtype="bf16")) == size(small_head())


def test_load_centers_in_float64_is_adopted_unless_a_type_was_asked_for() -> None:
    head, fixed = small_head(), small_head(storage_dtype="fp32")
    for one in (head, fixed):
        one.load_centers(torch.randn(C, D, dtype=torch.float64))
    assert head.centers.dtype == torch.float64
    assert fixed.centers.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_rate": 0.0}, r"head.sample_rate 0.0 must be in \(0, 1\]"),
        ({"sample_rate": 1.5}, r"head.sample_rate 1.5"),
        ({"center_update": "lazy"}, "head.center_update 'lazy' must be one of sparse, dense"),
        ({"optimizer": "adam"}, "head.optimizer 'adam' must be one of sgd, adamw"),
        ({"storage_dtype": "fp16"}, "head.storage_dtype 'fp16'"),
        ({"compute_dtype": "fp16"}, "head.compute_dtype 'fp16'"),
        ({"num_classes": 0}, "at least 1"),
        ({"logit_memory": 0}, "head.logit_memory 0"),
        ({"sample_rate": "a"}, "^head.sample_rate 'a' must be a number$"),
        ({"num_classes": None}, "^num_classes None must be a number$"),
        ({"momentum": 2.0}, "^optim.momentum 2.0 must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "^optim.weight_decay -1.0 must be at least 0"),
    ],
)
def test_head_with_a_value_out_of_range_raises_one_line(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        small_head(**changes)
    assert "\n" not in str(caught.value)


def test_loss_of_a_bad_batch_raises_one_line_and_leaves_nothing_behind() -> None:
    """NaN, labels out of range, wrong shapes."""
    head, (x, y) = small_head(), batch()
    broken = x.detach().clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="row 3 of the batch of rank 0 holds NaN or infinity"):
        head.loss(broken, y)
    for label in (-1, C):
        wrong = y.clone()
        wrong[5] = label
        with pytest.raises(ValueError, match=rf"labels: {label} in row 5 .* must be in \[0, {C}\)"):
            head.loss(x, wrong)
    with pytest.raises(ValueError, match="embeddings of shape"):
        head.loss(x[:, :4], y)
    with pytest.raises(ValueError, match="labels of shape"):
        head.loss(x, y[:3])
    with pytest.raises(ValueError, match="int64"):
        head.loss(x, y.float())
    with pytest.raises(ValueError, match=r"^labels: list: must be a tensor"):
        head.loss(x, y.tolist())
    with pytest.raises(ValueError, match=r"^embeddings: ndarray: must be a tensor"):
        head.loss(x.detach().numpy(), y)
    with pytest.raises(ValueError, match=r"^centers: ndarray: must be a tensor"):
        head.load_centers(torch.zeros(C, D).numpy())
    with pytest.raises(ValueError, match=r"^batch of 0 rows: must have at least one row"):
        head.loss(x[:0], y[:0])
    with pytest.raises(ValueError, match="centers of shape"):
        head.load_centers(torch.zeros(3, D))
    with pytest.raises(ValueError, match="no 'exp_avg'"):
        small_head(optimizer="adamw").load_state(head.state())
    assert train(head, 1) == train(small_head(), 1)


STEPS, CLASSES, WIDTH, BATCH = 10, 700, 12, 16
PIECES = {"whole": [16], "two": [8, 8], "uneven": [3, 9, 4]}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "sgd_plain": {"optimizer": "sgd", "momentum": 0.0},
    "adamw": {"optimizer": "adamw"},
}


def head_of(settings: dict[str, Any], margin: str) -> PartialFC:
    # Little memory for logits: the update goes through several blocks.
    given = {"embedding_size": WIDTH, "num_classes": CLASSES, "logit_memory": 20_000, **settings}
    return PartialFC(margin=build_margin(margin), seed=3, **given)


def step_of(head: PartialFC, step: int, pieces: list[int]) -> list[float]:
    """One step in pieces of other sizes at every third step, as where the number of workers changes."""
    draw = torch.Generator().manual_seed(step)
    x, labels = (
        torch.randn(BATCH, head.embedding_size, generator=draw),
        torch.randint(CLASSES, (BATCH,), generator=draw),
    )
    parts = [BATCH] if step % 3 == 0 else pieces
    losses = []
    for part, target in zip(x.split(parts), labels.split(parts), strict=True):
        head.prefetch(target)
        loss = head.loss(part.requires_grad_(), target)
        loss.backward(torch.tensor(len(part) / BATCH))
        losses.append(loss.item())
    head.step(0.1)
    return losses


def copy_of(head: PartialFC) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in head.state().items()}


COMBINATIONS = [
    pytest.param(
        {"storage_dtype": storage, "sample_rate": rate, **OPTIMIZERS[optimizer], **more}, pieces, id="-".join(name)
    )
    for storage, rate, optimizer, pieces, more in itertools.product(
        ("fp32", "bf16"), (0.049, 0.3, 1.0), OPTIMIZERS, PIECES, ({}, {"center_update": "dense"}, {"host_memory": True})
    )
    for name in [(storage, str(rate), optimizer, pieces, *more)]
]


@pytest.mark.parametrize(("settings", "pieces"), COMBINATIONS)
def test_head_resumed_at_each_step_equals_the_uninterrupted_one(settings: dict[str, Any], pieces: str) -> None:
    whole = head_of(settings, "elasticface" if settings["sample_rate"] == 0.3 else "curricularface")
    states, losses = [copy_of(whole)], []
    for step in range(STEPS):
        losses.append(step_of(whole, step, PIECES[pieces]))
        states.append(copy_of(whole))
    for start in range(STEPS - 1):
        resumed = head_of(settings, "elasticface" if settings["sample_rate"] == 0.3 else "curricularface")
        resumed.load_state(states[start])
        for step in (start, start + 1):
            assert step_of(resumed, step, PIECES[pieces]) == losses[step]
            for key, value in resumed.state().items():
                wanted = states[step + 1][key]
                assert torch.equal(value, wanted) if isinstance(value, torch.Tensor) else value == wanted, (step, key)


def test_head_resumed_after_a_larger_step_rounds_as_the_uninterrupted_one() -> None:
    settings = {"storage_dtype": "bf16", "sample_rate": 0.049, "num_classes": 20_000, "logit_memory": 10**8}
    settings |= {"embedding_size": 64}
    whole = head_of(settings, "cosface")
    step_of(whole, 1, [8, 8])  # two pieces: twice the rows of a whole batch
    state = copy_of(whole)
    step_of(whole, 3, [8, 8])
    resumed = head_of(settings, "cosface")
    resumed.load_state(state)
    step_of(resumed, 3, [8, 8])
    assert torch.equal(resumed.centers, whole.centers)
