"""Restricted reader of pickles: lists, tuples, bytes, text, bools, integers, and numpy arrays of bytes and bools.

It interprets the opcodes of Python 2 and 3 by itself: no name of a pickle is ever imported or called.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from rayface.data.shards.tar import Fetch
from rayface.data.sources.pickle_values import (
    CALLS,
    TYPES,
    Array,
    Bytes,
    DType,
    Name,
    PickleError,
    Span,
    byte_array,
    text_of,
)

_SHORT = 256  # longer strings are not read, only found
_MAX_OPCODES = 1 << 23
_MAX_LINE = 256 << 20  # of protocol 0, where an image is one line


def read_pickle(fetch: Fetch, limit: int) -> Any:
    """Return the value of a pickle of `limit` bytes: lists, tuples, None, bools, int, str, bytes, Span and Array.

    Long strings stay in the file, as Spans. Memory: 100 bytes for each opcode, of which there may be 8 million.

    Raises:
        PickleError: it is truncated or corrupt, or has other objects in it.
    """
    machine = _Machine(_Cursor(fetch, limit))
    for _ in range(_MAX_OPCODES):
        start = machine.cursor.at
        try:
            opcode = machine.cursor.take(1)
            if opcode == b".":
                return machine.pop()
            if opcode not in _OPCODES:
                raise PickleError(f"opcode {opcode!r} is none of lists, bytes, bools and numpy arrays of them")
            _OPCODES[opcode](machine)
        except PickleError as error:
            raise PickleError(f"at byte {start}: {error}") from None
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError, struct.error) as error:
            raise PickleError(f"at byte {start}: corrupt ({type(error).__name__})") from None
    raise PickleError(f"more than {_MAX_OPCODES} opcodes")


class _Cursor:
    """Position in the file."""

    def __init__(self, fetch: Fetch, limit: int) -> None:
        self._fetch, self._limit, self.at = fetch, limit, 0

    def take(self, count: int) -> bytes:
        self.skip(count)
        return self._fetch(self.at - count, count)

    def skip(self, count: int) -> None:
        if count < 0 or self.at + count > self._limit:
            raise PickleError(f"truncated: {count} bytes, {self._limit - self.at} left")
        self.at += count

    def number(self, layout: str) -> int:
        return int(struct.unpack(layout, self.take(struct.calcsize(layout)))[0])

    def line(self) -> tuple[int, int]:
        """Skip a line; return its offset and size."""
        start, at = self.at, self.at
        while at < min(self._limit, start + _MAX_LINE):
            count = min(1 << 16, self._limit - at)
            found = self._fetch(at, count).find(b"\n")
            if found >= 0:
                self.at = at + found + 1
                return start, at + found - start
            at += count
        raise PickleError("truncated: a line without an end")

    def short_line(self) -> str:
        offset, size = self.line()
        if size > _SHORT:
            raise PickleError(f"a line of {size} bytes where a short one must be")
        return self._fetch(offset, size).decode("ascii")

    def string(self, size: int, coding: str) -> Any:
        """Return a string of `size` bytes: str or bytes if it is short, a Span otherwise."""
        span = Span(self.at, size, coding)
        self.skip(size)
        return span if size > _SHORT else self.short(span)

    def short(self, span: Span) -> str | bytes:
        data = self._fetch(span.offset, span.size)
        if span.coding == "raw":
            return data
        if span.coding == "escaped":
            return codecs.escape_decode(data)[0]
        return data.decode("utf-8" if span.coding == "utf8" else "raw-unicode-escape")

    def quoted(self) -> Bytes:
        """Return the byte string of a line in quotes."""
        offset, size = self.line()
        quotes = self._fetch(offset, 1) + self._fetch(offset + size - 1, 1)
        if size < 2 or quotes not in (b"''", b'""'):
            raise PickleError("a string without quotes")
        span = Span(offset + 1, size - 2, "escaped")
        return span if size > _SHORT else self.short(span)  # type: ignore[return-value]

    def text_line(self) -> str | Span:
        offset, size = self.line()
        span = Span(offset, size, "unicode-escape")
        return span if size > _SHORT else self.short(span)  # type: ignore[return-value]


class _Machine:
    """Stack and memo of a pickle."""

    def __init__(self, cursor: _Cursor) -> None:
        self.cursor = cursor
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("corrupt: the stack is empty")
        return self.stack.pop()

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def popped_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise PickleError(f"items for {type(target).__name__}, which is no list")
        target.extend(values)

    def name(self, module: object, name: object) -> None:
        text = f"{text_of(module)}.{text_of(name)}"
        if text not in CALLS and text not in TYPES:
            raise PickleError(f"{text} is not admitted: only lists, bytes, bools and numpy arrays of them")
        self.push(Name(text))

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, Name) or called.text not in CALLS or not isinstance(arguments, tuple):
            raise PickleError(f"a call of {called.text if isinstance(called, Name) else type(called).__name__}")
        self.push(CALLS[called.text](*arguments))

    def build(self) -> None:
        """Set the state of an array; that of a type is its byte order, which one byte has not."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, DType):
            return
        if not isinstance(target, Array) or not isinstance(state, tuple) or len(state) != 5:
            raise PickleError(f"state of {type(target).__name__}")
        _, shape, dtype, is_fortran, data = state
        built = byte_array(data, dtype, shape, "F" if is_fortran else "C")
        target.dtype, target.shape, target.data = built.dtype, built.shape, built.data


def _integer_line(text: str) -> int | bool:
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text.rstrip("L"))


def _put(machine: _Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


_OPCODES: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.cursor.skip(1),  # protocol
    b"\x95": lambda m: m.cursor.skip(8),  # frame
    b"\x98": lambda m: None,  # read-only buffer
    b"(": _Machine.mark,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(_integer_line(m.cursor.short_line())),
    b"L": lambda m: m.push(_integer_line(m.cursor.short_line())),
    b"J": lambda m: m.push(m.cursor.number("<i")),
    b"K": lambda m: m.push(m.cursor.number("<B")),
    b"M": lambda m: m.push(m.cursor.number("<H")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.cursor.take(m.cursor.number("<B")), "little", signed=True)),
    b"S": lambda m: m.push(m.cursor.quoted()),
    b"U": lambda m: m.push(m.cursor.string(m.cursor.number("<B"), "raw")),
    b"T": lambda m: m.push(m.cursor.string(m.cursor.number("<i"), "raw")),
    b"C": lambda m: m.push(m.cursor.string(m.cursor.number("<B"), "raw")),
    b"B": lambda m: m.push(m.cursor.string(m.cursor.number("<I"), "raw")),
    b"\x8e": lambda m: m.push(m.cursor.string(m.cursor.number("<Q"), "raw")),
    b"\x96": lambda m: m.push(m.cursor.string(m.cursor.number("<Q"), "raw")),
    b"V": lambda m: m.push(m.cursor.text_line()),
    b"\x8c": lambda m: m.push(m.cursor.string(m.cursor.number("<B"), "utf8")),
    b"X": lambda m: m.push(m.cursor.string(m.cursor.number("<I"), "utf8")),
    b"\x8d": lambda m: m.push(m.cursor.string(m.cursor.number("<Q"), "utf8")),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.popped_to_mark()),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.popped_to_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.popped_to_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"p": lambda m: _put(m, int(m.cursor.short_line())),
    b"q": lambda m: _put(m, m.cursor.number("<B")),
    b"r": lambda m: _put(m, m.cursor.number("<I")),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"g": lambda m: m.push(m.memo[int(m.cursor.short_line())]),
    b"h": lambda m: m.push(m.memo[m.cursor.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.cursor.number("<I")]),
    b"c": lambda m: m.name(m.cursor.short_line(), m.cursor.short_line()),
    b"\x93": _Machine.stack_name,
    b"R": _Machine.reduce,
    b"b": _Machine.build,
}
