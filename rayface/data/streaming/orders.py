"""The sample order of a run, chosen by what its head trains on."""

from rayface.data.dataset import Dataset
from rayface.data.streaming.pair_order import PairOrder
from rayface.data.streaming.sample_order import SampleOrder, StreamKind


def order_samples(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    chunk_images: int,
    window_images: int,
    stream: StreamKind = "images",
) -> SampleOrder:
    """Return the order of a dataset's images, equally random for every layout.

    In a dataset with layout "by_identity", neighbours show one person: with chunks of 8, a batch of 4,096 images at 20
    images an identity would hold 690 identities instead of 4,090. Such a dataset gets chunks of one image, at the price
    of more requests per window and 4 bytes of memory an image in every reader.
    """
    chunk_images = 1 if dataset.about.layout == "by_identity" else chunk_images
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
