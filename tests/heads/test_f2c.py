"""F2C; its losses and gradients are compared with a plain transcription in test_momentum_encoder."""

import pytest
import torch
from torch import Tensor

from rayface.heads import F2C, ArcFace, build_margin
from tests.heads.momentum_oracle import FEATURES, WIDTH, equal_states, small_net, start_after_training


def small_f2c(**changes) -> F2C:
    return F2C(small_net(), **({"embedding_size": WIDTH, "pool_size": 8} | changes))


def images(number: int = 4) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, number, FEATURES, dtype=torch.float64)
    return x, y


def test_loss_keeps_what_the_second_pass_writes_and_nothing_of_the_first() -> None:
    head = small_f2c()
    before = head.pool.clone()
    x, y = images()
    head.loss(x, y, torch.tensor([1, 2, 3, 3]), torch.tensor([4, 5, 6, 7]))
    assert [head.columns.column_of(identity) for identity in range(1, 8)] == [0, 1, 2, -1, -1, -1, -1]
    wanted = torch.nn.functional.normalize(head.gallery(x)).detach()  # each batch has its own statistics
    torch.testing.assert_close(head.pool[0, :3], wanted[:3])
    torch.testing.assert_close(head.pool[1, 2], wanted[3])
    unchanged = torch.ones(2, 8, dtype=torch.bool)
    unchanged[0, :3] = unchanged[1, 2] = False
    assert torch.equal(head.pool[unchanged], before[unchanged])


def test_train_loss_of_pairs_takes_the_images_and_labels_of_a_row_one_after_another() -> None:
    head, other, (x, y) = small_f2c(), small_f2c(), images()
    x_labels, y_labels = torch.arange(4), torch.tensor([0, 1, 7, 8])
    pairs, labels = (torch.stack(both, dim=1).flatten(0, 1) for both in ((x, y), (x_labels, y_labels)))
    value = head.train_loss(head._plain, pairs, labels)
    assert torch.equal(value, other.loss(x, y, x_labels, y_labels))
    assert torch.equal(head.pool, other.pool)
    assert [head.columns.column_of(identity) for identity in (0, 1, 2, 3, 7, 8)] == [0, 1, 2, 3, -1, -1]


def test_start_of_a_run_takes_over_the_weights_and_statistics_of_the_backbone() -> None:
    head = small_f2c()
    start_after_training(head, head.probe, images()[0])
    assert equal_states(head.gallery, head.probe)


def test_loss_without_gradient_has_the_same_value() -> None:
    first, second = small_f2c(), small_f2c()
    batch = (*images(), torch.arange(4), torch.arange(1, 5))
    with torch.no_grad():
        value = first.loss(*batch)
    assert not value.requires_grad
    assert torch.equal(value, second.loss(*batch).detach())


def test_state_loaded_into_another_head_continues_with_equal_losses() -> None:
    torch.manual_seed(0)
    first, second = small_f2c(), small_f2c(seed=5)
    data = [(*images(), *torch.randint(12, (2, 4))) for _ in range(9)]
    for batch in data[:4]:
        first.loss(*batch)
    second.load_state({k: v.clone() for k, v in first.state().items()})
    for batch in data[4:]:
        assert torch.equal(first.loss(*batch), second.loss(*batch))
    assert first.row_tensors() == {}
    assert first.values() == {}


def test_loss_with_a_pool_of_fewer_rows_than_are_pushed_away_takes_all_of_them() -> None:
    head, (x, _) = small_f2c(pool_size=2), images()
    with torch.no_grad():
        value = head.loss(x, x, torch.arange(4), torch.arange(4, 8))  # none of the images compared is in the pool
        galleries = torch.nn.functional.normalize(head.gallery(x))
    pool = galleries[2:]  # the last two of each pass
    assert value.item() == pytest.approx(
        4 * (torch.nn.functional.normalize(head.probe(x)) @ pool.T).clamp(0).mean().item()
    )
    assert torch.allclose(head.pool[0].sum(0), pool.sum(0))


@pytest.mark.parametrize(("pool_size", "nearest"), [(8, 3), (19_999, 3), (20_000, 4), (49_999, 9), (10**6, 10)])
def test_image_outside_the_pool_is_pushed_from_a_share_of_it_within_bounds(pool_size: int, nearest: int) -> None:
    head = small_f2c()
    head.pool_size = pool_size
    cosine = torch.linspace(0.2, 0.8, 40)[None]
    pushed = head._outside(cosine, torch.tensor([-1])).item()
    assert pushed == pytest.approx(cosine[0, -nearest:].mean().item())
    assert head._outside(cosine, torch.tensor([0])).item() == 0


@pytest.mark.parametrize("name", ["adaface", "magface", "curricularface"])
def test_f2c_with_a_margin_of_norms_or_statistics_raises_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"^head.margin: {name}: f2c takes margins of the cosine alone: cosface, "):
        small_f2c(margin=build_margin(name))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"pool_size": 0}, "pool_size: 0: must be at least 1"), ({"momentum": -0.1}, "momentum: -0.1: must be")],
)
def test_f2c_with_a_bad_argument_raises_one_line(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_f2c(margin=ArcFace(0.5, 32.0), **changes)


def test_loss_of_a_net_with_another_embedding_size_raises_one_line() -> None:
    (x, y), labels = images(), torch.arange(4)
    with pytest.raises(ValueError, match=r"^embeddings of shape \(4, \d+\) must be \(batch, 3\)$"):
        small_f2c(embedding_size=3).loss(x, y, labels, labels)


def test_loss_of_a_batch_that_does_not_fit_raises_and_leaves_the_head_as_it_was() -> None:
    head = small_f2c()
    before = {k: v.clone() for k, v in head.replicated_tensors().items()}
    (x, y), labels = images(), torch.arange(4)
    for batch, words in (
        ((x, y[:3], labels, labels), "of 4, 3, 4, 4 rows"),
        ((x, y, labels, labels - 1), "-1 must not be negative"),
        ((x, y, labels, labels.double()), "int64"),
        ((x[:0], y[:0], labels[:0], labels[:0]), "^batch of 0 rows"),
    ):
        with pytest.raises(ValueError, match=words):
            head.loss(*batch)
    assert all(torch.equal(v, before[k]) for k, v in head.replicated_tensors().items())
