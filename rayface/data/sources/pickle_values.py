"""Values of restricted pickles: strings that stay in the file, arrays, and the few calls that build them."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rayface.data.shards.tar import Fetch

_MAX_SIDES = 32  # NumPy's
_BYTE_TYPES = {"u1": "u1", "|u1": "u1", "b1": "b1", "|b1": "b1", "?": "b1"}


class PickleError(ValueError):
    """A pickle that is corrupt or has anything else in it; one line."""


@dataclass(frozen=True, slots=True)
class Span:
    """A long string in the file: its bytes [offset, offset + size), and how they are coded there."""

    offset: int
    size: int
    coding: str  # raw; utf8 or unicode-escape: text; latin1 and latin1-escape: bytes stored as text; escaped: as \xff

    @property
    def is_text(self) -> bool:
        return self.coding in ("utf8", "unicode-escape")

    def read(self, fetch: Fetch) -> bytes:
        """Return the bytes; PickleError if they are not coded so."""
        data = fetch(self.offset, self.size)
        try:
            if self.coding == "raw":
                return data
            if self.coding == "escaped":
                return codecs.escape_decode(data)[0]
            return data.decode("utf-8" if self.coding == "latin1" else "raw-unicode-escape").encode("latin1")
        except (UnicodeError, ValueError) as error:
            raise PickleError(f"at byte {self.offset}: a string is corrupt ({error})") from None


Bytes = bytes | Span


@dataclass
class Array:
    """A numpy array of bytes (u1) or bools (b1), C-contiguous."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    data: Bytes = b""


@dataclass(frozen=True)
class Name:
    """A global of the pickle; only its name."""

    text: str


@dataclass(frozen=True)
class DType:
    """Type of an array: u1 or b1."""

    code: str


def text_of(value: object) -> str:
    """Return a short string, which Python 2 stores as bytes; PickleError for another value."""
    text = value.decode("ascii") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise PickleError(f"{type(value).__name__} where text must be")
    return text


def byte_array(data: object, dtype: object, shape: object, order: object = "C", axes: object = None) -> Array:
    """Return an array from what a pickle gives for it.

    Raises:
        PickleError: it is none of bytes or bools, or its size is not that of its data.
    """
    if not isinstance(dtype, DType) or not isinstance(data, bytes | Span) or not isinstance(shape, tuple):
        raise PickleError("an array of other objects than bytes and bools")
    size = len(data) if isinstance(data, bytes) else data.size
    is_raw = isinstance(data, bytes) or data.coding == "raw"
    # Integers of a pickle may have any number of digits, whose product takes hours.
    if len(shape) > _MAX_SIDES or not all(type(side) is int and 0 <= side <= max(1, size) for side in shape):
        raise PickleError(f"an array with {size} bytes of a shape that is not of integers from 0 to that")
    wide = sum(side != 1 for side in shape) > 1
    if wide and text_of(order) != "C":
        raise PickleError("an array in Fortran order")
    if is_raw and math.prod(shape) != size:
        raise PickleError(f"an array of shape {str(shape)[:60]} with {size} bytes")
    return Array(dtype.code, shape, data)


def _dtype(code: object, align: object = 0, copy: object = 1) -> DType:
    if text_of(code) not in _BYTE_TYPES:
        raise PickleError(f"an array of type {text_of(code)}: only bytes and bools are admitted")
    return DType(_BYTE_TYPES[text_of(code)])


def _scalar(dtype: object, data: object) -> bool | int:
    value = byte_array(data, dtype, (1,))
    if not isinstance(value.data, bytes):
        raise PickleError("a number of several bytes")
    return bool(value.data[0]) if value.dtype == "b1" else value.data[0]


def _reconstruct(subtype: object, shape: object, code: object) -> Array:
    if subtype != Name("numpy.ndarray"):
        raise PickleError(f"an array of class {subtype.text if isinstance(subtype, Name) else type(subtype).__name__}")
    return Array()


def _encode(text: object, coding: object = "latin1") -> Bytes:
    if text_of(coding).lower().replace("-", "") not in ("latin1", "iso88591"):
        raise PickleError(f"bytes coded as {coding}")
    if isinstance(text, Span) and text.is_text:
        return replace(text, coding="latin1" if text.coding == "utf8" else "latin1-escape")
    return str(text_of(text)).encode("latin1") if isinstance(text, str) else _bytes_again(text)


def _bytes_again(data: object) -> Bytes:
    if not isinstance(data, bytes | Span):
        raise PickleError(f"bytes of {type(data).__name__}")
    return data


def _bytes(data: object = b"", coding: object = None) -> Bytes:
    return _bytes_again(data) if coding is None else _encode(data, coding)


TYPES = frozenset(("numpy.ndarray",))
CALLS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    **{f"{module}.{name}": _bytes for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
}
for _core in ("numpy.core", "numpy._core"):
    CALLS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    CALLS[f"{_core}.multiarray.scalar"] = _scalar
    CALLS[f"{_core}.numeric._frombuffer"] = byte_array
