"""DCQ; its losses and gradients are compared with a plain transcription in test_momentum_encoder."""

import pytest
import torch
from torch import Tensor, nn

from rayface.heads import DCQ
from rayface.heads.collectives import Layout
from rayface.heads.dcq import shuffled_parts
from tests.heads.momentum_oracle import FEATURES, WIDTH, equal_states, small_net, start_after_training


def small_dcq(**changes) -> DCQ:
    return DCQ(small_net(), **({"embedding_size": WIDTH, "queue_size": 12} | changes))


def images(number: int = 4) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, number, FEATURES, dtype=torch.float64)
    return x, y


def test_queue_at_the_start_has_unit_rows_without_labels_that_depend_on_the_seed() -> None:
    head = small_dcq()
    assert torch.equal(head.queue_labels, torch.full((12,), -1))
    torch.testing.assert_close(head.queue.norm(dim=1), torch.ones(12, dtype=torch.float64))
    assert torch.equal(head.queue, small_dcq().queue)
    assert not torch.equal(head.queue, small_dcq(seed=1).queue)


def test_loss_enqueues_the_keys_and_returns_to_the_first_row_when_the_queue_is_full() -> None:
    head = small_dcq()
    for step in range(4):
        head.loss(*images(), torch.arange(4) + 10 * step)
    assert head.queue_labels.tolist() == [30, 31, 32, 33, 10, 11, 12, 13, 20, 21, 22, 23]


def test_loss_with_rows_without_a_label_counts_them_as_negatives_of_each_other() -> None:
    head, unlabelled = small_dcq(queue_size=4), torch.full((4,), -1)
    x, y = images()
    head.loss(x, y, unlabelled)
    queue = head.queue.clone()
    value = head.loss(x, y, unlabelled)
    with torch.no_grad():
        q, k = (nn.functional.normalize(net(z)) for net, z in ((head.query, x), (head.key, y)))
    logits = 50 * torch.cat([(q * k).sum(1, keepdim=True) - 0.3, q @ queue.T], dim=1)
    torch.testing.assert_close(value.detach(), nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.int64)))


def test_loss_with_the_whole_queue_of_one_label_is_that_of_the_key_alone_and_finite() -> None:
    head, same = small_dcq(queue_size=4), torch.zeros(4, dtype=torch.int64)
    head.loss(*images(), same)
    value = head.loss(*images(), same)
    value.backward()
    assert value.item() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in head.query.parameters())


def test_state_loaded_into_another_head_continues_with_equal_losses() -> None:
    torch.manual_seed(0)
    first, second = small_dcq(), small_dcq(seed=5)
    data = [(*images(), torch.randint(3, (4,))) for _ in range(9)]
    for batch in data[:4]:
        first.loss(*batch)
    second.load_state({k: v.clone() if isinstance(v, Tensor) else v for k, v in first.state().items()})
    for batch in data[4:]:
        assert torch.equal(first.loss(*batch), second.loss(*batch))
    assert first.row_tensors() == {}
    assert first.values() == second.values() == {"next_row": 0, "step": 9}


def test_train_loss_of_pairs_takes_the_first_image_as_query_and_the_second_as_key() -> None:
    head, other, (x, y) = small_dcq(), small_dcq(), images()
    labels = torch.tensor([5, 2, 5, 1])
    pairs = torch.stack([x, y], dim=1).flatten(0, 1)
    value = head.train_loss(head._plain, pairs, labels.repeat_interleave(2))
    assert torch.equal(value, other.loss(x, y, labels))
    assert torch.equal(head.queue, other.queue)
    assert head.queue_labels[:4].tolist() == [5, 2, 5, 1]


def test_start_of_a_run_takes_over_the_weights_and_statistics_of_the_backbone() -> None:
    head = small_dcq()
    start_after_training(head, head.query, images()[0])
    assert equal_states(head.key, head.query)
    assert not any(parameter.requires_grad for parameter in head.key.parameters())


def test_shuffled_parts_cover_the_batch_and_mix_the_ranks() -> None:
    layout = Layout((40, 41, 40), 0)
    parts = shuffled_parts(layout, 0, 7)
    assert [len(part) for part in parts] == [40, 41, 40]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(121))
    assert all((part < 40).sum() in range(4, 30) for part in parts)
    assert not torch.equal(parts[0], shuffled_parts(layout, 0, 8)[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queue_size": 0}, "queue_size: 0: must be above 0"),
        (
            {"queue_size": 12, "batch_size": 5},
            "^head.options.queue_size: 12: must be a multiple of the global batch, 5$",
        ),
        ({"momentum": 1.0}, "^head.options.momentum: 1.0: must be"),
        ({"scale": 0.0}, "^scale: 0.0: must"),
    ],
)
def test_dcq_with_a_bad_argument_raises_one_line(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        small_dcq(**changes)
    assert "\n" not in str(caught.value)


def test_loss_of_a_net_with_another_embedding_size_raises_one_line() -> None:
    x, y = images(4)
    with pytest.raises(ValueError, match=r"^embeddings of shape \(4, \d+\) must be \(batch, 3\)$"):
        small_dcq(embedding_size=3).loss(x, y, torch.arange(4))


def test_loss_of_a_batch_that_does_not_fit_raises_and_leaves_the_head_as_it_was() -> None:
    head = small_dcq()
    before = {k: v.clone() for k, v in head.replicated_tensors().items()}
    x, y = images(5)
    for batch, words in (
        ((x, y, torch.arange(5)), "must be a multiple"),
        ((x, y[:4], torch.arange(5)), "of 5, 4 and 5 rows"),
        ((x, y, torch.arange(5.0)), "int64"),
        ((x[:0], y[:0], torch.arange(0)), "^batch of 0 rows"),
    ):
        with pytest.raises(ValueError, match=words):
            head.loss(*batch)
    assert all(torch.equal(v, before[k]) for k, v in head.replicated_tensors().items())
