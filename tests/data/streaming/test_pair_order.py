"""Orders of pairs: two different images of an identity, identities uniform, the same for any number of workers."""

import numpy as np
import pytest

from rayface.data.streaming.label_groups import group_by_label
from rayface.data.streaming.pair_order import PairOrder
from rayface.data.streaming.sample_order import SampleOrder

# Sizes from 1 to 30 images; class 3 has none.
SIZES = np.array([5, 1, 30, 0, 2, 7, 11, 4, 3, 9])
IMAGE_LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES)).astype(np.int32)
GROUPS = group_by_label(IMAGE_LABELS, len(SIZES))


def pair_order(batch_size: int = 6, **changes: object) -> PairOrder:
    settings = {
        "num_samples": len(IMAGE_LABELS),
        "num_identities": 9,
        "batch_size": batch_size,
        "window_images": 40,
        "seed": 1,
    }
    return PairOrder(**settings | changes)


def test_groups_of_labels_hold_every_image_of_each_identity_once():
    assert len(GROUPS) == 9
    assert GROUPS.positions.dtype == np.int32
    for group, label in enumerate(np.flatnonzero(SIZES)):
        own = GROUPS.positions[GROUPS.starts[group] : GROUPS.starts[group + 1]]
        assert np.array_equal(own, np.flatnonzero(label == IMAGE_LABELS))


@pytest.mark.parametrize("with_instances", [False, True])
def test_identity_pairs_are_two_different_images_of_one_identity(with_instances):
    order = pair_order(with_instances=with_instances)
    for step in range(3 * order.steps_per_epoch):
        pairs = order.batch(step, GROUPS).reshape(-1, 2)
        assert len(pairs) == 6
        own = pairs[: order.identity_pairs]
        labels = IMAGE_LABELS[own]
        assert (labels[:, 0] == labels[:, 1]).all()
        assert ((own[:, 0] != own[:, 1]) | (SIZES[labels[:, 0]] == 1)).all()


def test_identities_of_a_run_are_drawn_equally_often():
    order = pair_order(batch_size=3)
    labels = np.concatenate([IMAGE_LABELS[order.batch(step, GROUPS)[::2]] for step in range(9 * 30)])
    assert np.array_equal(np.bincount(labels, minlength=10), np.where(SIZES > 0, 90, 0))


def test_both_images_of_a_pair_are_drawn_uniformly_from_the_identity():
    order = pair_order(batch_size=9)
    pairs = np.concatenate([order.batch(step, GROUPS).reshape(-1, 2) for step in range(2000)])
    own = pairs[IMAGE_LABELS[pairs[:, 0]] == 8]  # 3 images: 6 ordered pairs
    _, counts = np.unique(own @ [len(IMAGE_LABELS), 1], return_counts=True)
    assert len(own) == 2000
    assert len(counts) == 6
    assert abs(counts - 2000 / 6).max() < 5 * np.sqrt(2000 / 6)


def test_instance_pairs_are_the_consecutive_images_of_a_plain_order():
    order = pair_order(batch_size=7, with_instances=True)
    plain = SampleOrder(num_samples=len(IMAGE_LABELS), batch_size=6, window_images=40, seed=1)
    assert order.identity_pairs == 4
    for step in range(20):
        assert np.array_equal(order.batch(step, GROUPS)[8:], plain.batch(step))


def test_windows_of_pairs_are_the_batches_of_their_steps():
    order = pair_order(with_instances=True)
    step = 0
    for window in range(3 * order.windows_per_epoch):
        assert order.steps_of(window).start == step
        for batch in order.window(window, GROUPS):
            assert np.array_equal(batch, order.batch(step, GROUPS))
            step += 1
    assert step == 3 * order.steps_per_epoch


def test_rows_of_any_number_of_ranks_are_whole_pairs_of_the_batch():
    order = pair_order(batch_size=7)
    for world_size in (1, 2, 3, 7):
        parts = [order.rank_images(rank, world_size) for rank in range(world_size)]
        assert [part.start % 2 for part in parts] == [0] * world_size
        assert np.array_equal(np.concatenate([order.batch(5, GROUPS)[part] for part in parts]), order.batch(5, GROUPS))


def test_epoch_of_pairs_sees_as_many_images_as_the_dataset_has():
    order = pair_order(batch_size=8)
    assert (order.images_per_step, order.steps_per_epoch) == (16, len(IMAGE_LABELS) // 16)


def test_order_of_pairs_without_the_groups_of_its_dataset_is_refused():
    with pytest.raises(ValueError, match="9 identities"):
        pair_order().window(0)
    with pytest.raises(ValueError, match="9 identities"):
        pair_order().window(0, group_by_label(IMAGE_LABELS[:50] % 3, 3))


def test_batch_of_one_pair_cannot_hold_both_kinds():
    with pytest.raises(ValueError, match=r"train\.batch_size: 1: must be at least 2"):
        pair_order(batch_size=1, with_instances=True)
    with pytest.raises(ValueError, match=r"train\.batch_size: 37: rows of 2 must not exceed the 72 samples"):
        pair_order(batch_size=37)
