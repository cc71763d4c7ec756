"""Reading images of a source by threads: in the order asked for, converted, faults in their places."""

import io
import time

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from PIL import Image

from rayface.data.decode import decode_image, orientation
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import SourceImage, SourceSettings
from rayface.data.sources.reading import as_jpeg, map_ordered, read_images
from tests.data.scanned_tars import picture
from tests.data.sources.in_memory import InMemory


def test_map_ordered_with_slow_calls_keeps_the_order_and_works_ahead_only_so_far() -> None:
    asked: list[int] = []

    def numbers():  # type: ignore[no-untyped-def]
        for number in range(20):
            asked.append(number)
            yield number

    def slow(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number**2

    found = map_ordered(slow, numbers(), threads=2)
    assert next(found) == 0
    assert len(asked) <= 5
    assert list(found) == [number**2 for number in range(1, 20)]


def test_read_images_without_a_size_keeps_the_bytes_of_valid_images() -> None:
    good, bad = picture(0, "png"), picture(1, "jpg")[:-20]
    source = InMemory([[("a", "ann", good), ("b", "ann", bad)]])
    kept, fault = read_images(source, 0, pa.table({"key": ["a", "b"]}))
    assert isinstance(kept, SourceImage)
    assert kept.data == good
    assert isinstance(fault, Fault)
    assert (fault.shard, fault.member, fault.offset, fault.kind) == ("p0", "b", 7, "unreadable")
    assert "\n" not in fault.reason


def test_read_images_of_another_size_are_resized_and_encoded() -> None:
    source = InMemory([[("a", "ann", picture(0, "png"))]], SourceSettings(image_size=16, quality=90))
    (image,) = read_images(source, 0, pa.table({"key": ["a"]}))
    assert isinstance(image, SourceImage)
    data = image.data
    assert data == as_jpeg(picture(0, "png"), 16, 90)
    assert decode_image(data).shape == (16, 16, 3)


def test_read_images_with_a_quality_encodes_even_jpegs() -> None:
    source = InMemory([[("a", "ann", picture(0, "jpg"))]])
    sizes = []
    for quality in (20, 90):
        (image,) = read_images(source, 0, pa.table({"key": ["a"]}), quality=quality)
        assert isinstance(image, SourceImage)
        data = image.data
        assert decode_image(data).shape == decode_image(picture(0, "jpg")).shape
        sizes.append(len(data))
    assert sizes[0] < sizes[1]


def test_as_jpeg_of_a_jpeg_that_is_to_be_turned_is_upright() -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 3  # orientation: half a turn
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 200
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    turned = as_jpeg(file.getvalue(), 32, 90)
    assert orientation(turned) == 1
    upper, lower = simplejpeg.decode_jpeg(turned)[[4, 27]].mean(axis=(1, 2))
    assert upper < 20 < 180 < lower


def test_as_jpeg_of_a_jpeg_of_that_size_returns_its_bytes() -> None:
    jpeg = picture(3, "jpg")
    assert as_jpeg(jpeg, 32, 50) is jpeg
    assert decode_image(as_jpeg(jpeg, 16, 50)).shape == (16, 16, 3)
    cmyk = simplejpeg.encode_jpeg(np.full((32, 32, 4), 90, np.uint8), colorspace="CMYK")
    assert as_jpeg(cmyk, 32, 50) != cmyk  # that few decoders read
    with pytest.raises(ValueError, match="not an image"):
        as_jpeg(b"text", 32, 50)
