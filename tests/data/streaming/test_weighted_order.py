"""Order of directories that are drawn by weight: how often every image is seen, on any number of workers."""

import numpy as np
import pytest

from rayface.data.streaming.sample_order import rank_rows
from rayface.data.streaming.weighted_order import WeightedOrder, draws_of


def order_of(sizes, draws, **others):
    settings = {"batch_size": 10, "seed": 3, "chunk_images": 4, "window_images": 64, **others}
    return WeightedOrder(num_samples=sum(sizes), sizes=sizes, draws=draws, **settings)


def seen(order, epochs):
    return np.concatenate([order.window(number).ravel() for number in range(epochs * order.windows_per_epoch)])


@pytest.mark.parametrize(
    ("sizes", "draws"), [((200, 100), (200, 32)), ((57, 301), (172, 60)), ((40, 33, 7), (8, 33, 28))]
)
def test_epoch_holds_the_draws_of_every_directory(sizes, draws):
    order = order_of(sizes, draws, batch_size=1)
    edges = np.cumsum([0, *sizes])
    for epoch in range(3):
        ids = np.concatenate([order.batch(epoch * order.steps_per_epoch + step) for step in range(sum(draws))])
        assert np.histogram(ids, edges)[0].tolist() == list(draws)


def test_every_image_is_seen_equally_often_over_whole_passes():
    order = order_of((200, 96), (200, 32), batch_size=1)
    counts = np.bincount(seen(order, 3), minlength=296)
    assert counts.tolist() == [3] * 200 + [1] * 96
    twice = order_of((200, 96), (200, 192), batch_size=1)
    assert np.bincount(seen(twice, 1), minlength=296).tolist() == [1] * 200 + [2] * 96


def test_weights_change_the_share_of_a_directory_in_every_batch():
    order = order_of((4000, 4000), draws_of((4000, 4000), (1, 0.25), 4), batch_size=1000, window_images=2000)
    shares = [np.mean(order.batch(step) < 4000) for step in range(order.steps_per_epoch)]
    assert len(shares) == 5
    assert all(abs(share - 0.8) < 0.06 for share in shares)  # 4.7 standard deviations of a binomial draw


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_are_a_pure_function_of_seed_and_step_for_any_number_of_workers(world_size):
    order, again = order_of((200, 100), (200, 32)), order_of((200, 100), (200, 32))
    for step in (0, 22, 23, 71):
        parts = [again.batch(step)[rank_rows(10, rank, world_size)] for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), order.batch(step))
    assert not np.array_equal(order.batch(0), order_of((200, 100), (200, 32), seed=4).batch(0))
    assert not np.array_equal(order.batch(0), order.batch(order.steps_per_epoch))


def test_chunks_of_a_directory_stay_together_in_a_window():
    order = order_of((4000, 1000), (4000, 320), chunk_images=8, window_images=400, batch_size=40)
    window = order.window(0).ravel()
    chunks = np.unique(window // 8, return_counts=True)[1]
    assert np.mean(chunks == 8) > 0.9


def test_draws_of_weights_are_whole_chunks_and_never_zero():
    assert draws_of((1001, 1000, 5, 10), (1, 0.3, 0.01, 2.5), 8) == (1001, 304, 8, 24)


def test_weights_that_leave_less_than_a_batch_are_refused():
    with pytest.raises(ValueError, match="must not exceed the 8 samples"):
        order_of((100, 100), (4, 4))
