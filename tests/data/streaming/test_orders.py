"""The order of a run by what its head trains on."""

from types import SimpleNamespace

import pytest

from rayface.data.streaming.orders import order_samples
from rayface.data.streaming.pair_order import PairOrder
from rayface.data.streaming.sample_order import SampleOrder


@pytest.mark.parametrize(
    ("stream", "order_class", "with_instances"),
    [("images", SampleOrder, None), ("pairs", PairOrder, False), ("pairs_and_images", PairOrder, True)],
)
def test_order_of_a_stream_has_its_rows(stream, order_class, with_instances):
    about = SimpleNamespace(layout="shuffled")
    dataset = SimpleNamespace(index=range(100), about=about, num_classes_with_images=9)
    order = order_samples(dataset, batch_size=10, seed=2, chunk_images=8, window_images=40, stream=stream)
    assert type(order) is order_class
    assert (order.batch_size, order.seed, order.chunk_images, order.window_images) == (10, 2, 8, 40)
    assert getattr(order, "with_instances", None) == with_instances
