"""Strict tar parser: ustar, pax and GNU headers, byte offsets of everything, no silent skips."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_RECORD = 20 * BLOCK  # tar pads archives to a multiple of this
_SEARCH = 1 << 20
_MAX_EXTENSION = 1 << 20  # a larger pax or long-name header is corrupt
_MAX_LENGTH = 20  # bytes in which the length of a pax record must end
_REGULAR = b"07\0"

Fetch = Callable[[int, int], bytes]  # (offset, count) -> bytes, fewer only at the end of the file


class TarError(Exception):
    """Corruption at byte `offset`.

    Attributes:
        member: name if the header still has it.
        kind: "truncated" if the file ends early."""

    def __init__(self, offset: int, reason: str, member: str | None = None, kind: str = "header"):
        super().__init__(reason)
        self.offset, self.reason, self.member, self.kind = offset, reason, member, kind


class Member(NamedTuple):
    """One archive member: `offset` of its first header, extension headers included, and `end` after the padding."""

    name: str
    offset: int
    data: int
    size: int
    end: int
    type: bytes

    @property
    def is_file(self) -> bool:
        return self.type in _REGULAR and not self.name.endswith("/")


class Gap(NamedTuple):
    """Bytes [offset, end) without a readable member; `harmless` if no member can have been lost."""

    offset: int
    end: int
    reason: str
    member: str | None = None
    harmless: bool = False
    kind: str = "header"


def _number(field: bytes, what: str) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.isdigit():  # rejects signs, underscores and 0o, which int() accepts
        try:
            return int(digits, 8)
        except ValueError:
            pass
    raise ValueError(f"{what} {field!r} is not an octal number")


def _byte_sum(block: bytes) -> int:
    """Return sum(block) of 512 bytes, eleven times as fast: Adler-32 has the sum of up to 256 bytes in its low half."""
    return (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2


def _text(raw: bytes) -> str:
    # backslashreplace keeps distinct names distinct and, unlike surrogates, can be stored in parquet.
    return raw.decode("utf-8", "backslashreplace")


def parse_header(block: bytes) -> tuple[str, int, bytes]:
    """Return (name, data size, type) of a 512-byte header; ValueError if the checksum or a field is wrong."""
    stored = _number(block[148:156], "checksum")
    actual = _byte_sum(block) - sum(block[148:156]) + 256
    if stored != actual:
        # Some old programs sum signed bytes.
        signed = actual - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if stored != signed:
            raise ValueError(f"checksum is {actual}, header says {stored}")
    name = block[:100].partition(b"\0")[0]
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name), _number(block[124:136], "size"), block[156:157]


def _pax_records(data: bytes) -> dict[str, str]:
    records, at, end = {}, 0, len(data.rstrip(b"\0"))
    while at < end:
        length = data[at : at + _MAX_LENGTH].partition(b" ")[0]
        if not length.isdigit() or not len(length) + 3 <= int(length) <= len(data) - at:
            raise ValueError("malformed pax record")
        record = data[at + len(length) + 1 : at + int(length)]
        keyword, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise ValueError("malformed pax record")
        records[_text(keyword)] = _text(value)
        at += int(length)
    return records


def read_member(fetch: Fetch, offset: int, limit: int) -> Member | None:
    """Read the member whose first header is at `offset`; return None at a zero block.

    Pax and GNU long-name headers apply to the member that follows them. `limit` is the end of the file.

    Raises:
        TarError: the member is corrupt.
    """
    at, name, size = offset, None, None
    while True:
        block = fetch(at, BLOCK)
        if block == _ZEROS:
            if at != offset:
                raise TarError(at, "an extension header has no member after it", name)
            return None
        if len(block) < BLOCK:
            raise TarError(at, f"truncated: {len(block)} of 512 header bytes are left", name, kind="truncated")
        try:
            own_name, own_size, kind = parse_header(block)
            data = at + BLOCK
            if kind in b"xgLK":
                at, name, size = _extension(fetch, data, own_size, kind, limit, name, size)
                continue
        except ValueError as error:
            raise TarError(at, f"corrupt tar header ({error})", name) from None
        name = own_name if name is None else name
        size = own_size if size is None else size
        if kind in b"123456":
            size = 0  # links, devices and directories carry no data whatever their size field says
        if data + size > limit:
            raise TarError(offset, f"truncated: {size} bytes of data, {limit - data} left", name, kind="truncated")
        return Member(name, offset, data, size, min(data + -(-size // BLOCK) * BLOCK, limit), kind)


def _extension(
    fetch: Fetch, data: int, size: int, kind: bytes, limit: int, name: str | None, real_size: int | None
) -> tuple[int, str | None, int | None]:
    """Apply one extension header: return (offset of the next header, name, size)."""
    if size > _MAX_EXTENSION:
        raise ValueError(f"extension header of {size} bytes")
    if data + size > limit:
        raise TarError(data - BLOCK, f"truncated: {size} bytes of data, {limit - data} left", name, kind="truncated")
    if kind == b"L":
        name = _text(fetch(data, size).rstrip(b"\0"))
    elif kind == b"x":
        records = _pax_records(fetch(data, size))
        name = records.get("path", name)
        if "size" in records:
            real_size = int(records["size"])
            if real_size < 0:
                raise ValueError(f"pax size {real_size} is negative")
    return data + -(-size // BLOCK) * BLOCK, name, real_size


def iter_members(fetch: Fetch, limit: int) -> Iterator[Member | Gap]:
    """Yield every member and every gap of an archive of `limit` bytes, in order; continue after corruption."""
    at = 0
    while at < limit:
        try:
            member = read_member(fetch, at, limit)
        except TarError as error:
            if error.kind == "truncated":
                yield Gap(error.offset, limit, error.reason, error.member, kind=error.kind)
                return
            end = _next_header(fetch, error.offset + 1, limit)
            yield Gap(error.offset, end, f"{error.reason}, {end - error.offset} bytes skipped", error.member)
            at = end
            continue
        if member is not None:
            yield member
            at = member.end
            continue
        start, at = at, _skip_zeros(fetch, at, limit)
        if at == limit:
            return
        end = _next_header(fetch, at, limit)
        # Zeros up to a header separate concatenated archives; anything else is a lost member.
        reason = f"zeros inside the archive, {end - start} bytes skipped"
        yield Gap(start, end, reason, harmless=end == at)
        at = end
    yield Gap(limit, limit, "truncated: no end-of-archive marker", harmless=True, kind="truncated")


def _skip_zeros(fetch: Fetch, at: int, limit: int) -> int:
    """Return the offset of the first 512-byte block, counted from `at`, that is not all zeros."""
    while at < limit:
        chunk = fetch(at, min(_SEARCH, limit - at))
        rest = chunk.lstrip(b"\0")
        if rest:
            return at + (len(chunk) - len(rest)) // BLOCK * BLOCK
        at += len(chunk)
    return limit


def _next_header(fetch: Fetch, at: int, limit: int) -> int:
    """Return the offset of the next valid header at any alignment, because lost bytes shift what follows."""
    while at + BLOCK <= limit:
        chunk = fetch(at, min(_SEARCH, limit - at))
        found = chunk.find(b"ustar", 257)
        while found >= 0:
            start = at + found - 257
            block = fetch(start, BLOCK)
            if len(block) == BLOCK and _is_header(block):
                return start
            found = chunk.find(b"ustar", found + 1)
        at += max(len(chunk) - BLOCK, 1)
    return limit


def _is_header(block: bytes) -> bool:
    try:
        name, _, _ = parse_header(block)
    except ValueError:
        return False
    return bool(name)


def is_safe_name(name: str) -> bool:
    """Return whether a member of this name stays inside the folder that it is unpacked into, on every system."""
    parts = name.replace("\\", "/").split("/")
    return bool(parts[0]) and ".." not in parts and min(name) >= " "


def encode_member(name: str, data: bytes) -> bytes:
    """Return headers, data and padding of a regular file with mode 0644, owner 0 and time 0: same input, same bytes.

    Raises:
        ValueError: the name leads outside of the archive's folder.
    """
    return b"".join(member_blocks(name, data))


def member_blocks(name: str, data: bytes | memoryview) -> tuple[bytes, bytes | memoryview, bytes]:
    """Return what `encode_member` joins: headers, `data` itself, and padding."""
    if not is_safe_name(name):
        raise ValueError(f"member {name!r}: must be a relative name without .. and control characters")
    raw = name.encode("utf-8")
    head = _header(raw[:100], len(data), b"0")
    if len(raw) > 100:
        long = raw + b"\0"
        head = _header(b"././@LongLink", len(long), b"L") + long + bytes(-len(long) % BLOCK) + head
    return head, data, bytes(-len(data) % BLOCK)


def end_of_archive(size: int) -> bytes:
    """Return the zeros that close an archive of `size` bytes: two blocks, then up to a whole record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % _RECORD)


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    if size >= 8**11:
        raise ValueError(f"member of {size} bytes: at most 8 GiB fit a ustar header")
    magic = b"ustar  \0" if kind == b"L" else b"ustar\x0000"
    owner = b"0000644\x00" + 2 * b"0000000\x00"  # mode, uid, gid
    rest = b"%011o\0" % size + b"%011o\0" % 0 + b" " * 8 + kind + bytes(100) + magic
    block = (name.ljust(100, b"\0") + owner + rest).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
