"""A dataset as a pipeline of the `webdataset` library."""

from typing import Unpack

from rayface.data.dataset import Dataset
from rayface.data.image_stream import ImageStream, StreamOptions
from rayface.data.ordered_images import OrderedImage

try:
    import webdataset
except ModuleNotFoundError as missing:
    raise ValueError("to_webdataset needs the webdataset library: pip install webdataset") from missing

Sample = dict[str, str | bytes]


class ImagePipeline(webdataset.DataPipeline, webdataset.FluidInterface):
    """Pipeline of samples `__key__`, `jpg`, `cls`: decode, map, batched and all other stages of webdataset follow it.

    The images are split over ranks and workers by ImageStream, so that no shard is empty for a worker and every image
    comes once.
    """

    def __init__(self, *stages: object) -> None:
        super().__init__(*stages)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; see ImageStream.set_epoch."""
        self.pipeline[0].set_epoch(epoch)


def open_pipeline(dataset: Dataset, **options: Unpack[StreamOptions]) -> ImagePipeline:
    """Return the pipeline that begins with the images of a dataset; see `Dataset.to_webdataset`."""
    return ImagePipeline(ImageStream(dataset, _as_sample, **options))


def _as_sample(image: OrderedImage) -> Sample:
    """Return an image as webdataset reads it from a tar; the label is that of the joint dataset."""
    return {"__key__": image.key, "jpg": image.data, "cls": str(image.label).encode()}
