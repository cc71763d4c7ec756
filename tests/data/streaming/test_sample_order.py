"""The sample order: every sample once an epoch, the same global batch for any number of workers."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from rayface.data.streaming.orders import order_samples
from rayface.data.streaming.sample_order import SampleOrder, _chunk_order, rank_rows


@pytest.mark.parametrize(
    ("n", "batch", "chunk", "window"),
    [(1000, 10, 8, 64), (997, 10, 8, 64), (64, 64, 1, 1), (130, 7, 16, 20), (5, 2, 8, 4)],
)
def test_epoch_has_every_sample_at_most_once_and_leaves_less_than_a_batch(n, batch, chunk, window):
    order = SampleOrder(num_samples=n, batch_size=batch, chunk_images=chunk, window_images=window, seed=3)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = np.concatenate([order.batch(step) for step in steps])
        assert len(np.unique(seen)) == len(seen) == n // batch * batch
        assert seen.min() >= 0
        assert seen.max() < n


def test_windows_are_the_batches_of_their_steps():
    order = SampleOrder(num_samples=500, batch_size=9, window_images=50)
    step = 0
    for window in range(2 * order.windows_per_epoch):
        for batch in order.window(window):
            assert np.array_equal(batch, order.batch(step))
            step += 1
    assert step == 2 * order.steps_per_epoch


def test_order_of_equal_seeds_repeats_and_differs_by_epoch():
    order = SampleOrder(num_samples=640, batch_size=64, seed=1)
    again = SampleOrder(num_samples=640, batch_size=64, seed=1)
    other = SampleOrder(num_samples=640, batch_size=64, seed=2)
    assert np.array_equal(order.batch(3), again.batch(3))
    assert not np.array_equal(order.batch(3), order.batch(3 + order.steps_per_epoch))
    assert not np.array_equal(order.batch(3), other.batch(3))


@pytest.mark.parametrize(("chunk", "window", "steps"), [(8, 64, 6), (4, 15, 2), (7, 14, 1), (1, 1000, 13)])
def test_window_is_a_shuffled_part_of_an_epochs_permuted_chunks(chunk, window, steps):
    """A resumed run of an earlier version gets the same images."""
    order = SampleOrder(num_samples=137, batch_size=10, chunk_images=chunk, window_images=window, seed=5)
    assert order.window_steps == steps
    for number in range(2 * order.windows_per_epoch):
        epoch, place = divmod(number, order.windows_per_epoch)
        chunks = np.random.default_rng([5, epoch, 0]).permutation(-(-137 // chunk))
        images = [image for each in chunks for image in range(each * chunk, min(137, each * chunk + chunk))]
        wanted = np.array(images[: 13 * 10][place * steps * 10 : (place + 1) * steps * 10])
        np.random.default_rng([5, epoch, place, 1]).shuffle(wanted)
        assert order.window(number).tolist() == wanted.reshape(-1, 10).tolist()


def test_order_of_chunks_is_numpys_permutation_in_four_bytes_a_chunk():
    """A resumed run of an earlier version gets the same images."""
    tracemalloc.start()
    try:
        order, place = _chunk_order(800_003, 2, 5, 3, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(order, np.random.default_rng([5, 3, 0]).permutation(400_002))
    assert order[place] == 400_001
    assert peak < 4.1 * 400_002


def test_window_has_chunks_of_the_whole_dataset():
    order = SampleOrder(num_samples=100_000, batch_size=100, chunk_images=8, window_images=1000)
    assert np.std(order.window(0)) > 0.2 * order.num_samples


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_rank_rows_cover_the_global_batch_without_overlap(world_size):
    rows = [rank_rows(30, rank, world_size) for rank in range(world_size)]
    assert np.array_equal(np.concatenate([np.arange(30)[r] for r in rows]), np.arange(30))


def test_order_of_a_dataset_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"train.batch_size: 64: must not exceed the 10 samples"):
        SampleOrder(num_samples=10, batch_size=64)


@pytest.mark.parametrize(("layout", "chunk_images"), [("by_identity", 1), ("shuffled", 8)])
def test_order_of_any_layout_mixes_identities_like_a_shuffled_dataset(layout, chunk_images):
    labels = np.repeat(np.arange(20_000), 20)  # as they lie in a set by identity
    if layout == "shuffled":
        labels = np.random.default_rng(0).permutation(labels)
    dataset = SimpleNamespace(index=labels, about=SimpleNamespace(layout=layout))
    order = order_samples(dataset, batch_size=4096, seed=0, chunk_images=8, window_images=4096)
    assert order.chunk_images == chunk_images
    counts = [len(np.unique(labels[order.batch(step)])) for step in range(3)]
    expected = 20_000 * (1 - (1 - 1 / 20_000) ** 4096)  # of 4,096 drawn from all
    assert counts == pytest.approx([expected] * 3, rel=0.02)
