"""The sample order of a run, chosen by what its head trains on."""

from collections.abc import Sequence

from rayface.data.dataset import Dataset
from rayface.data.streaming.pair_order import PairOrder
from rayface.data.streaming.sample_order import SampleOrder, StreamKind
from rayface.data.streaming.weighted_order import WeightedOrder, draws_of


def order_samples(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    chunk_images: int,
    window_images: int,
    stream: StreamKind = "images",
    weights: Sequence[float] = (),
) -> SampleOrder:
    """Return the order of a dataset's images, equally random for every layout.

    In a dataset with layout "by_identity", neighbours show one person: with chunks of 8, a batch of 4,096 images at 20
    images an identity would hold 690 identities instead of 4,090. Such a dataset gets chunks of one image, at the price
    of more requests per window and 4 bytes of memory an image in every reader.

    Args:
        weights: how often each directory's images are in an epoch, 0.3 for 30 % of them; empty: once.

    Raises:
        ValueError: weights of another number of directories, or for pairs; see also `SampleOrder`.
    """
    chunk_images = 1 if dataset.about.layout == "by_identity" else chunk_images
    if weights:
        return _weighted(dataset, weights, batch_size, seed, chunk_images, window_images, stream)
    if stream == "images":
        return SampleOrder(
            num_samples=len(dataset.index),
            batch_size=batch_size,
            seed=seed,
            chunk_images=chunk_images,
            window_images=window_images,
        )
    return PairOrder(
        num_samples=len(dataset.index),
        num_identities=dataset.num_classes_with_images,
        batch_size=batch_size,
        seed=seed,
        chunk_images=chunk_images,
        window_images=window_images,
        with_instances=stream == "pairs_and_images",
    )


def _weighted(
    dataset: Dataset,
    weights: Sequence[float],
    batch_size: int,
    seed: int,
    chunk_images: int,
    window_images: int,
    stream: StreamKind,
) -> SampleOrder:
    sizes = dataset.root_sizes()
    if len(weights) != len(sizes):
        raise ValueError(f"data.weights: {list(weights)}: must be one for each of the {len(sizes)} of data.train")
    if stream != "images":
        raise ValueError(f"data.weights: {list(weights)}: the head trains on pairs of images: leave data.weights out")
    return WeightedOrder(
        num_samples=len(dataset.index),
        batch_size=batch_size,
        seed=seed,
        chunk_images=chunk_images,
        window_images=window_images,
        sizes=tuple(sizes),
        draws=draws_of(sizes, weights, chunk_images),
    )
