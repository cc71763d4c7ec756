"""Writes .bin files as InsightFace does, of every pickle protocol, and as Python 2 did."""

import pickle
import struct
from collections.abc import Sequence

import numpy as np

FORMS = ("bytes", "bytearray", "array", "column", "read-only", "bools")


def bin_file(images: Sequence[bytes], is_same: Sequence[bool], *, protocol: int = 4, form: str = "bytes") -> bytes:
    """The pickle of (images, is_same), with the images and bools as objects of that form."""
    same: object = list(is_same)
    found: list[object] = list(images)
    if form == "bytearray":
        found = [bytearray(image) for image in images]
    elif form in ("array", "column", "read-only"):
        arrays = [np.frombuffer(image, np.uint8) for image in images]
        found = list(arrays) if form == "read-only" else [array.copy() for array in arrays]
        if form == "column":
            found = [array.copy()[:, None] for array in arrays]
        same = [np.bool_(value) for value in is_same]
    elif form == "bools":
        same = np.array(is_same)
    return pickle.dumps((found, same), protocol=protocol)


def of_numpy_1(pickled: bytes) -> bytes:
    """The same pickle with the module names of numpy 1."""
    new, old = b"numpy._core.", b"numpy.core."
    for module in (b"multiarray", b"numeric"):
        long, short = new + module, old + module
        pickled = pickled.replace(bytes([0x8C, len(long)]) + long, bytes([0x8C, len(short)]) + short)
        pickled = pickled.replace(b"c" + long + b"\n", b"c" + short + b"\n")
    return pickled


def of_python_2(images: Sequence[bytes], is_same: Sequence[bool], *, protocol: int, arrays: bool = False) -> bytes:
    """What Python 2.7 writes: byte strings as str, in protocol 0 with escapes."""
    memo = iter(range(1 << 20))
    put = (lambda: b"p%d\n" % next(memo)) if protocol == 0 else (lambda: b"r" + struct.pack("<I", next(memo)))

    def text(data: bytes) -> bytes:
        if protocol == 0:
            escaped = b"".join(
                b"\\x%02x" % byte if byte < 32 or byte > 126 or byte in b"'\\" else bytes([byte]) for byte in data
            )
            return b"S'" + escaped + b"'\n" + put()
        head = b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))
        return head + data + put()

    def number(value: int) -> bytes:
        if protocol == 0:
            return b"I%d\n" % value
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)

    def boolean(value: bool) -> bytes:
        return b"I0%d\n" % value if protocol < 2 else (b"\x88" if value else b"\x89")

    def array(data: bytes) -> bytes:
        made = b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"(cnumpy\nndarray\n" + put()
        made += b"(" + number(0) + b"t" + text(b"b") + b"t" + put() + b"R" + put()
        dtype = b"cnumpy\ndtype\n" + put() + b"(" + text(b"u1") + number(0) + number(1) + b"t" + put() + b"R" + put()
        dtype += (
            b"("
            + number(3)
            + text(b"|")
            + b"NNN"
            + 2 * (b"I-1\n" if protocol == 0 else b"J\xff\xff\xff\xff")
            + number(0)
        )
        state = (
            b"("
            + number(1)
            + b"("
            + number(len(data))
            + b"t"
            + dtype
            + b"t"
            + put()
            + b"b"
            + boolean(False)
            + text(data)
        )
        return made + state + b"t" + put() + b"b"

    def listed(items: list[bytes]) -> bytes:
        if protocol == 0:
            return b"(l" + put() + b"".join(item + b"a" for item in items)
        return b"]" + put() + b"(" + b"".join(items) + b"e"

    head = bytes([0x80, protocol]) if protocol >= 2 else b""
    lists = (
        listed([array(image) if arrays else text(image) for image in images]),
        listed([boolean(value) for value in is_same]),
    )
    return head + b"(" + lists[0] + lists[1] + b"t" + put() + b"."
