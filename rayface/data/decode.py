"""Strict decoder of image bytes: all accepted formats, turned upright by EXIF orientation."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

_JPEG = b"\xff\xd8"
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  \r\n": "JPEG 2000",
    **{b"P%d%c" % (kind, space): "PNM" for kind in range(1, 7) for space in b" \t\r\n"},
}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_MAX_PIXELS = 1 << 27  # 134 million; a small header can otherwise request 12 GiB, of a GIF of 35 bytes 7 GB
SNIFF_BYTES = 12  # what `image_format` needs
_ORIENTATION_TAG, _SHORT = 0x0112, 3


def image_format(head: bytes) -> str | None:
    """Return the format of an image by its first SNIFF_BYTES bytes, None if it is not an image."""
    if head.startswith(_JPEG):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "HEIF"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def decode_image(data: bytes, size: int | None = None, *, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Decode one image strictly: corruption that a viewer would tolerate is an error.

    EXIF orientation (JPEG, PNG, WebP, TIFF) is applied, transparency is dropped, and an animation gives its first
    frame. JPEGs are scaled down while decoding.

    Args:
        size: height and width of the result in pixels, resized without a crop; None keeps the size.
        out: uint8 (size, size, 3), contiguous, where the result is written and returned; undefined after an error.

    Returns:
        uint8 RGB (height, width, 3).

    Raises:
        ValueError: not an image, corrupt, or of an unsupported format.
    """
    assert out is None or (out.shape == (size, size, 3) and out.dtype == np.uint8)
    turn = orientation(data)
    if data.startswith(_JPEG):
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        _refuse_huge(height, width)
        if out is not None and turn == 1 and height == width == size:
            return simplejpeg.decode_jpeg(data, buffer=out)
        image = simplejpeg.decode_jpeg(data, min_height=size or 0, min_width=size or 0)
    else:
        image = _decode_other(data)
    image = _upright(image, turn)
    if size and image.shape[:2] != (size, size):
        shrinks = min(image.shape[:2]) >= size
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if out is None:
        return image
    out[:] = image
    return out


def decode_images(images: Sequence[bytes], size: int) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode many images; return (n, size, size, 3) RGB and the reason for each that failed, which stays black."""
    decoded = np.zeros((len(images), size, size, 3), np.uint8)
    bad: dict[int, str] = {}
    for i, data in enumerate(images):
        try:
            decode_image(data, size, out=decoded[i])
        except ValueError as error:
            decoded[i] = 0
            bad[i] = str(error)
    return decoded, bad


def _decode_other(data: bytes) -> NDArray[np.uint8]:
    name = image_format(data[:SNIFF_BYTES])
    if name is None:
        raise ValueError("not an image" if data else "no bytes")
    if name == "HEIF":
        # OpenCV's AVIF ignores the rotation that these files carry, and it has no HEIC.
        raise ValueError("HEIC and AVIF are not read: save it as JPEG or PNG")
    height, width = _claimed_size(name, data)
    if not height * width:
        raise ValueError(f"{name} that cannot be decoded: its header cannot be read: save it as JPEG or PNG")
    _refuse_huge(height, width)
    try:
        # OpenCV's orientation depends on its version, so apply it here; OpenCV always applies TIFF's.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"{name} that cannot be decoded: {' '.join(str(error).split())}") from None
    if image is None:
        raise ValueError(f"{name} that cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _claimed_size(name: str, data: bytes) -> tuple[int, int]:
    """Return height and width that a header claims; (0, 0) if it cannot be parsed."""
    if name == "PNG":
        width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
        return height, width
    if name == "GIF":
        width, height = struct.unpack("<HH", data[6:10].ljust(4, b"\0"))
        return height, width
    try:
        with Image.open(io.BytesIO(data)) as image:  # reads the header alone
            return image.height, image.width
    except Image.DecompressionBombError:
        return _MAX_PIXELS + 1, 1
    except Exception:  # of many kinds, for corrupt headers
        return 0, 0


def _refuse_huge(height: int, width: int) -> None:
    if height * width > _MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels, more than {_MAX_PIXELS}")


def orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, of a JPEG, PNG or WebP; 1 (upright) if it has no valid one."""
    exif = _exif(data)
    byte_order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if byte_order is None:
        return 1
    try:
        (start,) = struct.unpack_from(byte_order + "I", exif, 4)
        (count,) = struct.unpack_from(byte_order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(byte_order + "HHIH", exif, at)
            if tag == _ORIENTATION_TAG and kind == _SHORT and 1 <= value <= 8:
                return int(value)
    except struct.error:
        pass  # corrupt metadata does not make the image corrupt
    return 1


def _exif(data: bytes) -> bytes:
    """Return the EXIF block, which is a small TIFF file, or nothing."""
    if data.startswith(_JPEG):
        # A search of the bytes avoids parsing the segments of almost every JPEG.
        return _jpeg_exif(data) if b"Exif\0\0" in data else b""
    if data.startswith(b"\x89PNG") and b"eXIf" in data:
        return _chunk(data, b"eXIf", start=8, header=">I4s", after=4)
    if data[:4] == b"RIFF" and b"EXIF" in data:
        return _chunk(data, b"EXIF", start=12, header="<4sI", after=0).removeprefix(b"Exif\0\0")
    return b""


def _jpeg_exif(data: bytes) -> bytes:
    at = 2
    while data[at : at + 1] == b"\xff" and (marker := data[at + 1 : at + 2]) not in (b"\xda", b""):
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == b"\xe1" and data[at + 4 : at + 10] == b"Exif\0\0":
            return data[at + 10 : at + 2 + length]
        at += 1 if marker == b"\xff" else 2 + length  # segments may be padded with 0xff
    return b""


def _chunk(data: bytes, wanted: bytes, *, start: int, header: str, after: int) -> bytes:
    """Return the data of a PNG or RIFF chunk; `after`: bytes of checksum behind each."""
    at = start
    while at + 8 <= len(data):
        first, second = struct.unpack_from(header, data, at)
        name, length = (first, second) if isinstance(first, bytes) else (second, first)
        if name == wanted:
            return data[at + 8 : at + 8 + length]
        at += 8 + length + after
        at += length % 2 if header.startswith("<") else 0  # RIFF pads to even sizes
    return b""


def _upright(image: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation."""
    if turn == 1:
        return image
    if turn >= 5:
        image = image.swapaxes(0, 1)
    rows = slice(None, None, -1 if turn in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if turn in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(image[rows, columns])
