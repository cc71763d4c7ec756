"""Values of LMDB databases: images, pickles of an image and its label, and Caffe's Datum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from rayface.data.decode import SNIFF_BYTES, image_format
from rayface.data.sources.pickle_values import Array, PickleError, Span
from rayface.data.sources.pickled import read_pickle

_CHANNELS, _HEIGHT, _WIDTH, _DATA, _LABEL, _ENCODED = 1, 2, 3, 4, 5, 7  # fields of a Datum
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5


class EntryError(ValueError):
    """A value that is no image with a label; `kind` as in Fault."""

    def __init__(self, reason: str, kind: str):
        super().__init__(reason)
        self.kind = kind


class Entry(NamedTuple):
    """Where a value has its image, and its label, None if it has none.

    `shape` is (channels, height, width) of raw pixels in BGR order.
    """

    data: bytes | Span
    label: int | str | None
    shape: tuple[int, int, int] | None = None

    def image(self, value: Any) -> bytes:
        """Return the encoded image; raw pixels become a PNG.

        Raises:
            EntryError: it is corrupt.
        """
        try:
            data = self.data
            if isinstance(data, Span):
                data = data.read(lambda at, count: bytes(value[at : at + count]))
        except PickleError as error:
            raise EntryError(str(error), "unreadable") from None
        if self.shape is None:
            return data
        channels, height, width = self.shape
        if channels not in (1, 3) or height < 1 or width < 1 or len(data) != channels * height * width:
            raise EntryError(f"{len(data)} bytes for pixels of shape {self.shape}", "unreadable")
        pixels = np.frombuffer(data, np.uint8).reshape(self.shape).transpose(1, 2, 0)
        return cv2.imencode(".png", pixels)[1].tobytes()


def parse_entry(value: Any) -> Entry:
    """Find image and label in a value, bytes or a view of them, without reading the image.

    Raises:
        EntryError: it is no image, pickle of an image and its label, or Datum.
    """
    if image_format(bytes(value[:SNIFF_BYTES])) is not None:
        return Entry(Span(0, len(value), "raw"), None)
    try:
        if bytes(value[:1]) == b"\x80":
            return _of_pickle(value)
        try:
            return _of_datum(value)
        except ValueError:
            if bytes(value[-1:]) != b".":  # ends old pickles, and Datums with some labels
                raise
            return _of_pickle(value)
    except ValueError as error:
        reason = f"neither an image, nor a pickle or Datum of one and its label ({error})"
        raise EntryError(reason, "unreadable") from None


def _of_pickle(value: Any) -> Entry:
    """Take the first bytes and the first integer or text of a list or tuple."""
    content = read_pickle(lambda at, count: bytes(value[at : at + count]), len(value))
    items = list(content) if isinstance(content, tuple | list) else [content]
    items = [item.data if isinstance(item, Array) and item.dtype == "u1" else item for item in items]
    images = [item for item in items if isinstance(item, bytes) or (isinstance(item, Span) and not item.is_text)]
    labels = [item for item in items if type(item) in (int, str)]
    if not images:
        raise PickleError("no bytes in it")
    return Entry(images[0], labels[0] if labels else None)


def _of_datum(value: object) -> Entry:
    """Parse the protocol buffer of a Datum: channels, height, width, data, label, float_data, encoded."""
    found: dict[int, Any] = {}
    for number, content in _fields(value):
        found[number] = content
    if not isinstance(found.get(_DATA), Span) or not isinstance(found.get(_LABEL, 0), int):
        raise ValueError("no data in it")
    if found.get(_ENCODED):
        return Entry(found[_DATA], found.get(_LABEL, 0))
    shape = tuple(found.get(number, 0) for number in (_CHANNELS, _HEIGHT, _WIDTH))
    if not all(type(side) is int and side > 0 for side in shape):
        raise ValueError("no channels, height and width in it")
    return Entry(found[_DATA], found.get(_LABEL, 0), shape)


def _fields(value: Any) -> Iterator[tuple[int, int | Span]]:
    """Yield (number, content) of the fields of a protocol buffer; ValueError if it is none."""
    at = 0
    while at < len(value):
        tag, at = _varint(value, at)
        kind, size = tag & 7, {_FIXED_64: 8, _FIXED_32: 4}.get(tag & 7, 0)
        content: int | Span
        if kind == _VARINT:
            content, at = _varint(value, at)
        elif kind in (_FIXED_64, _FIXED_32, _BYTES):
            if kind == _BYTES:
                size, at = _varint(value, at)
            content = Span(at, size, "raw")
            at += size
        else:
            raise ValueError("no protocol buffer")
        if at > len(value):
            raise ValueError("truncated")
        yield tag >> 3, content


def _varint(value: Any, at: int) -> tuple[int, int]:
    """Return a number and where the next field begins."""
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(value):
            break
        byte = value[at]
        number, at = number | (byte & 127) << shift, at + 1
        if byte < 128:
            return number, at
    raise ValueError("no protocol buffer")
