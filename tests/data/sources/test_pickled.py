"""The restricted reader of pickles: every form of a .bin file, and nothing else."""

import pickle
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest

from rayface.data.shards.tar import Fetch
from rayface.data.sources.pickle_values import Array, PickleError, Span
from rayface.data.sources.pickled import read_pickle
from tests.data.sources.bin_files import FORMS, bin_file, of_numpy_1, of_python_2

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, size, dtype=np.uint8).tobytes() for size in (3000, 1, 256, 257, 70_000, 0)]
IS_SAME = [True, False, True]


def fetch_of(data: bytes) -> Fetch:
    return lambda offset, count: data[offset : offset + count]


def plain(value: Any, fetch: Fetch) -> Any:
    """The value with its strings and arrays as bytes."""
    if isinstance(value, Span):
        return value.read(fetch)
    if isinstance(value, Array):
        return plain(value.data, fetch)
    if isinstance(value, list | tuple):
        return [plain(item, fetch) for item in value]
    return value


def read(data: bytes) -> Any:
    return plain(read_pickle(fetch_of(data), len(data)), fetch_of(data))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("protocol", range(6))
def test_read_pickle_of_every_protocol_and_form_gives_the_images_and_bools(form: str, protocol: int) -> None:
    data = bin_file(IMAGES, IS_SAME, protocol=protocol, form=form)
    wanted = [IMAGES, bytes(IS_SAME) if form == "bools" else IS_SAME]
    assert read(data) == wanted
    old = of_numpy_1(data)
    assert (old != data) == (form not in ("bytes", "bytearray"))
    assert read(old) == wanted


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_read_pickle_of_python_2_gives_the_images_and_bools(protocol: int, arrays: bool) -> None:
    data = of_python_2(IMAGES, IS_SAME, protocol=protocol, arrays=arrays)
    ours, theirs = read(data), pickle.loads(data, encoding="latin1")
    assert ours == [IMAGES, IS_SAME]
    assert [image.tobytes() if arrays else image.encode("latin1") for image in theirs[0]] == IMAGES


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


HOSTILE = {
    "reduce": b"cos\nsystem\n(S'touch PWNED'\ntR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch PWNED\x85R.",
    "inst": b"(S'touch PWNED'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch PWNED'\no.",
    "newobj": b"\x80\x02cos\nsystem\n(S'touch PWNED'\nt\x81.",
    "newobj_ex": b"\x80\x04cos\nsystem\n(S'touch PWNED'\nt}\x92.",
    "builtin": b"c__builtin__\neval\n(S'1'\ntR.",
    "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
    "numpy": b"cnumpy\nload\n(S'PWNED'\ntR.",
    "numpy testing": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\nNtR.",
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile2\x93.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Pfile\n.",
    "binary persistent": b"S'x'\nQ.",
    "class of an array": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
    "call of a type": b"cnumpy\nndarray\n(I1099511627776\ntR.",
    "state of a list": b"](I1\n(I1\ntNNS''\ntb.",
    "dictionary": b"}.",
    "set": b"\x80\x04\x8f.",
    "float": b"F1.0\n.",
    "buffer": b"\x80\x05\x97.",
    "objects": pickle.dumps(np.array([None, "x"], object)),
    "integers": pickle.dumps(np.arange(3)),
    "nested": pickle.dumps(Call(list, (1,))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_read_pickle_of_other_objects_is_refused(name: str) -> None:
    with pytest.raises(PickleError, match=r"^at byte \d+: "):
        read(HOSTILE[name])


NESTED = b"N" + b"\x85" * 100_000  # a tuple in a tuple in a tuple, whose repr() exceeds the recursion limit
DEEP = {
    "call": NESTED + b")R.",
    "class": b"cnumpy.core.multiarray\n_reconstruct\n(" + NESTED + b"I0\nS'b'\ntR.",
    "shape": b"cnumpy.core.numeric\n_frombuffer\n(S''\ncnumpy\ndtype\n(S'u1'\ntR" + NESTED + b"S'C'\ntR.",
    "coding": b"c_codecs\nencode\n(S'x'\n" + NESTED + b"tR.",
    "items": NESTED + b"Na.",
}


@pytest.mark.parametrize("name", DEEP)
def test_read_pickle_of_a_deeply_nested_tuple_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(PickleError, match=r"^at byte \d+: .{,80}$"):
        read(DEEP[name])


ARRAY = bin_file([b"abc"], [], protocol=2, form="array")
BOUNDED = {
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "4 GB of bytes": b"\x80\x03B" + struct.pack("<I", 0xFFFFFFFF) + b"x.",
    "negative size": b"\x80\x02T" + struct.pack("<i", -5) + b"x.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "number": b"\x8a\xffx.",
    "shape": bin_file([b"abc"], [], protocol=2, form="array").replace(
        b"K\x03\x85", b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"
    ),
    "memo": b"]r\xff\xff\xff\x7fa.",
    "no end": b"](((((",
    "nothing": b"",
    "stack": b"a.",
    "mark": b"t.",
    "endless line": b"S'" + b"x" * 100_000,
}


@pytest.mark.parametrize("name", BOUNDED)
def test_read_pickle_with_claims_beyond_its_file_is_refused_in_bounded_memory(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(PickleError, match=r"^at byte \d+: "):
        read(BOUNDED[name])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_read_pickle_leaves_long_strings_in_the_file() -> None:
    data = bin_file([bytes(1_000_000)] * 16, [True] * 8)
    asked = 0

    def fetch(offset: int, count: int) -> bytes:
        nonlocal asked
        asked += count
        return data[offset : offset + count]

    assert len(read_pickle(fetch, len(data))[0]) == 16
    assert asked < 1000


def test_read_pickle_of_endless_opcodes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayface.data.sources.pickled._MAX_OPCODES", 1000)
    with pytest.raises(PickleError, match="more than 1000 opcodes"):
        read(b"]" + b"N" * 5000)


def test_read_pickle_of_an_array_with_many_large_sides_is_refused_at_once() -> None:
    sides = b"\x8a\xff" + b"\x7f" * 255 + b"q\x01" + b"h\x01" * 1499
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01("
    data = b"\x80\x02" + array + sides + b"tcnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtb."
    with pytest.raises(PickleError, match="an array with 1 bytes of a shape that is not of integers from 0 to that"):
        read(data)
