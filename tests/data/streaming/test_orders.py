"""The order of a run by what its head trains on."""

from types import SimpleNamespace

import pytest

from rayface.data.streaming.orders import order_samples
from rayface.data.streaming.pair_order import PairOrder
from rayface.data.streaming.sample_order import SampleOrder
from rayface.data.streaming.weighted_order import WeightedOrder


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


def test_order_with_weights_draws_of_every_directory():
    about = SimpleNamespace(layout="shuffled")
    dataset = SimpleNamespace(index=range(300), about=about, root_sizes=lambda: [200, 100])
    settings = {"batch_size": 10, "seed": 2, "chunk_images": 8, "window_images": 40}
    order = order_samples(dataset, **settings, weights=[1, 0.3])
    assert isinstance(order, WeightedOrder)
    assert (order.sizes, order.draws, order.num_samples) == ((200, 100), (200, 32), 300)
    with pytest.raises(ValueError, match=r"^data.weights: \[1\]: must be one for each of the 2 of data.train$"):
        order_samples(dataset, **settings, weights=[1])
    with pytest.raises(ValueError, match=r"^data.weights: \[1, 2\]: the head trains on pairs of images"):
        order_samples(dataset, **settings, weights=[1, 2], stream="pairs")
