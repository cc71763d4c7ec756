"""Strict decoding of image bytes: every format, size and orientation; corrupt images are refused."""

import io
import resource
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from rayface.data.decode import decode_image, decode_images, image_format, orientation


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 127 + 60 * np.sin(x / 9)], -1).astype(np.uint8)


@pytest.mark.parametrize("size", [112, 56, 64, 28, 128])
def test_decode_images_of_any_size_resizes_them(size):
    image = decode_image(simplejpeg.encode_jpeg(smooth(112, 112), quality=95), size)
    assert image.shape == (size, size, 3)
    x = np.arange(size)
    assert np.abs(image[..., 0].astype(float) - 255 * (x + 0.5) / size).mean() < 6


@pytest.mark.parametrize("size", [56, 112])  # resized, and decoded in place
def test_decode_images_with_corrupt_ones_names_them_and_keeps_the_others(size):
    good = simplejpeg.encode_jpeg(smooth(112, 112))
    images, bad = decode_images([good, b"", good[: len(good) // 2], good], size)
    assert sorted(bad) == [1, 2]
    assert np.array_equal(images[0], images[3])
    assert not images[1:3].any()


@pytest.mark.parametrize("shape", [(112, 112), (224, 224), (112, 100), (60, 60)])
@pytest.mark.parametrize("kind", ["JPEG", "turned JPEG", "grey JPEG", "CMYK JPEG", "PNG"])
def test_decode_into_an_array_is_that_without_one_and_writes_nothing_else(shape, kind):
    image, stream = Image.fromarray(smooth(*shape)), io.BytesIO()
    exif = Image.Exif()
    if kind == "turned JPEG":
        exif[0x0112] = 6
    modes = {"grey JPEG": "L", "CMYK JPEG": "CMYK"}
    image.convert(modes.get(kind, "RGB")).save(stream, kind.split()[-1], exif=exif)
    outs = np.full((3, 112, 112, 3), 99, np.uint8)
    got = decode_image(stream.getvalue(), 112, out=outs[1])
    assert np.shares_memory(got, outs)
    assert np.array_equal(outs[1], decode_image(stream.getvalue(), 112))
    assert (outs[[0, 2]] == 99).all()


@pytest.mark.parametrize("size", [None, 112])
def test_decode_of_a_header_of_gigabytes_is_refused_before_memory_is_taken(size):
    jpeg = bytearray(simplejpeg.encode_jpeg(smooth(32, 32)))
    start = jpeg.find(b"\xff\xc0") + 5
    jpeg[start : start + 4] = (65_500).to_bytes(2, "big") * 2
    png = bytearray(encoded(smooth(32, 32), "PNG"))
    png[16:24] = (20_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    for data in (bytes(jpeg), bytes(png)):
        with pytest.raises(ValueError, match="pixels, more than"):
            decode_image(data, size)
    for short in (bytes(png)[:14], bytes(png)[:20]):
        with pytest.raises(ValueError, match=r"PNG that cannot be decoded|pixels"):
            decode_image(short, size)


def bitmap_of(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, *[0] * 5)
    )


def tiff_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(smooth(16, 16), "TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if (tag := struct.unpack_from("<H", data, at)[0]) in (256, 257):
            struct.pack_into("<HHII", data, at, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


def odd_bitmap_of(width: int, height: int) -> bytes:
    """A bitmap with a longer header, which Pillow cannot read and OpenCV can."""
    start = 14 + 44 + 1024
    head = struct.pack("<IiiHHIIiiII", 44, width, height, 1, 8, 1, 4, 0, 0, 256, 0) + bytes(4 + 1024)
    return b"BM" + struct.pack("<IHHI", start + 66, 0, 0, start) + head + b"\0\1" + bytes(64)


def gif_of(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame


@pytest.mark.parametrize("side", [20_000, 50_000])
@pytest.mark.parametrize("made", [bitmap_of, tiff_of, gif_of])
def test_decode_of_a_small_file_of_many_pixels_is_refused_before_memory_is_taken(made, side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="pixels, more than"):
        decode_image(made(side, side), 112)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_decode_of_a_header_that_only_opencv_can_read_is_refused():
    with pytest.raises(ValueError, match="BMP that cannot be decoded: its header cannot be read: save it as JPEG"):
        decode_image(odd_bitmap_of(12_000, 12_000), 112)


def test_opencv_itself_refuses_what_decode_refuses():
    code = (
        "import sys, rayface, cv2, numpy as np\n"
        "cv2.imdecode(np.frombuffer(sys.stdin.buffer.read(), np.uint8), cv2.IMREAD_COLOR)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=odd_bitmap_of(12_000, 12_000), capture_output=True)
    assert b"CV_IO_MAX_IMAGE_PIXELS" in done.stderr


def encoded(image: np.ndarray, kind: str, turn: int | None = None, **options) -> bytes:
    if turn:
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "a maker", turn
        options["exif"] = exif
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("size", [None, 112, 50])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_decode_of_every_format_and_size_applies_exif_orientation(kind, size):
    for turn in range(1, 9):
        data = encoded(smooth(90, 140), kind, turn, quality=95)
        with Image.open(io.BytesIO(data)) as stored:
            upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
        assert upright.shape == ((90, 140, 3) if turn < 5 else (140, 90, 3))
        wanted = cv2.resize(upright, (size, size), interpolation=cv2.INTER_AREA) if size else upright
        got = decode_image(data, size)
        assert got.shape == wanted.shape
        assert np.abs(got.astype(int) - wanted).mean() < 3
        assert kind == "TIFF" or orientation(data) == turn


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",  # 9: no orientation
    ],
)
def test_decode_with_corrupt_exif_keeps_the_image(block):
    plain = simplejpeg.encode_jpeg(smooth(112, 112))
    segment = b"Exif\0\0" + block
    data = plain[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + plain[2:]
    assert orientation(data) == 1
    assert np.array_equal(decode_image(data), decode_image(plain))


def test_orientation_of_an_embedded_image_is_ignored():
    inner = encoded(smooth(8, 8), "JPEG", 6)
    assert orientation(simplejpeg.encode_jpeg(smooth(112, 112)) + inner) == 1  # a preview behind the end


def damaged(jpeg: bytes, count: int) -> list[bytes]:
    """Return copies with one flipped bit in the image's data, or truncated."""
    rng, start = np.random.default_rng(0), jpeg.index(b"\xff\xda")
    copies = [jpeg[: int(len(jpeg) * share)] for share in np.linspace(0.2, 0.98, count // 3)]
    while len(copies) < count:
        copy = bytearray(jpeg)
        copy[rng.integers(start, len(jpeg) - 2)] ^= 1 << rng.integers(8)
        copies.append(bytes(copy))
    return copies


def is_refused(data: bytes, size: int | None) -> bool:
    try:
        decode_image(data, size)
    except ValueError:
        return True
    return False


def test_decode_of_a_corrupt_image_is_refused_at_every_size():
    copies = damaged(simplejpeg.encode_jpeg(smooth(300, 200), quality=90), 60)
    strict = [is_refused(data, None) for data in copies]
    assert sum(strict) >= 20
    lenient = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None for data in copies]
    assert any(accepted and refused for accepted, refused in zip(lenient, strict, strict=True))
    for size in (300, 112, 20):
        assert [is_refused(data, size) for data in copies] == strict


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_image_format_follows_the_content_and_truncated_images_are_refused(kind):
    data = encoded(smooth(60, 40), kind)
    assert image_format(data[:12]) is not None
    assert decode_image(data, 30).shape == (30, 30, 3)
    assert is_refused(data[: len(data) // 2], 30)


def test_decode_of_an_unsupported_format_names_it():
    for data, words in ((b"", "no bytes"), (b"<html></html>", "not an image"), (b"\0\0\0\x18ftypheic", "HEIC")):
        with pytest.raises(ValueError, match=words):
            decode_image(data, 30)
    grey, cmyk = (Image.fromarray(smooth(60, 40)).convert(mode) for mode in ("L", "CMYK"))
    for image in (grey, cmyk):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=95)
        wanted = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(decode_image(stream.getvalue()) - wanted).mean() < 4
