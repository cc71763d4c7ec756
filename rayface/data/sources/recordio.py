"""RecordIO of MXNet: records between aligned magic numbers, strictly parsed; no silent skips."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from rayface.data.shards.tar import Fetch

MAGIC = struct.pack("<I", 0xCED7230A)
_HEADER = struct.Struct("<4sI")  # magic; kind in the upper 3 bits, number of bytes in the lower 29
_IMAGE_HEADER = struct.Struct("<IfQQ")  # flag, label, id, second id
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_SEARCH = 1 << 20
_FIRST_BYTES = _HEADER.size + _IMAGE_HEADER.size + 4  # the headers, and the first label of an array


class RecordError(ValueError):
    """A corrupt record; `kind` as in Fault. `num_lost` counts the records that begin inside it."""

    def __init__(self, reason: str, kind: str = "header", num_lost: int = 1):
        super().__init__(reason)
        self.kind, self.num_lost = kind, num_lost


class Record(NamedTuple):
    """Position of a record: its bytes [offset, end) with all its headers; `head`, the first bytes of its content."""

    offset: int
    end: int
    num_bytes: int  # of the content
    head: bytes


class Gap(NamedTuple):
    """Bytes [offset, end) in which one record is lost."""

    offset: int
    end: int
    reason: str
    kind: str


class ImageRecord(NamedTuple):
    """Content of a record as InsightFace and im2rec write it: `start` is where the image begins, if there is one."""

    label: float
    id: int
    start: int
    num_labels: int


def image_record(head: bytes, num_bytes: int) -> ImageRecord:
    """Parse the header of an image, from the first bytes of a record of `num_bytes`.

    Flag 0 has one label in the header, a larger flag is the number of float32 labels behind it, the first of which is
    the identity.

    Raises:
        RecordError: the record is too short for its header.
    """
    if num_bytes < _IMAGE_HEADER.size:
        raise RecordError(f"record of {num_bytes} bytes, the header of an image has {_IMAGE_HEADER.size}", "label")
    flag, label, number, _ = _IMAGE_HEADER.unpack_from(head)
    start = _IMAGE_HEADER.size + 4 * flag
    if start > num_bytes:
        raise RecordError(f"{flag} labels in a record of {num_bytes} bytes", "label")
    if flag:
        (label,) = struct.unpack_from("<f", head, _IMAGE_HEADER.size)
    return ImageRecord(label, number, start, flag)


def iter_records(fetch: Fetch, start: int, stop: int, limit: int) -> Iterator[Record | Gap]:
    """Yield the records of a file of `limit` bytes that begin in [start, stop), and the gaps behind them.

    The format has no magic number at a multiple of 4 inside a record, so reading can begin anywhere, and resumes at
    the next one after corruption.
    """
    at = next_record(fetch, start, limit)
    if start == 0 and at:
        yield Gap(0, at, f"no record here, {at} bytes skipped", "header")
    while at < min(stop, limit):
        record, error = None, None
        try:
            record = _record_at(fetch, at, limit)
            if record.end < limit:
                _header_at(fetch, record.end, limit, (_WHOLE, _FIRST))
        except RecordError as found:
            error = found
        end = record.end if record and not error else next_record(fetch, at + _HEADER.size, limit)
        # A corrupt size leads behind the next record; otherwise the header behind this record is the corrupt one.
        if record and record.end <= end:
            yield record
            at = record.end
        if error:
            yield Gap(at, end, f"{error}, {end - at} bytes skipped", error.kind)
        at = end


def read_record(fetch: Fetch, offset: int, end: int) -> bytes:
    """Return the content of the record [offset, end), whose parts are joined with the magic number between them.

    Raises:
        RecordError: it is corrupt, or contains the headers of other records.
    """
    raw = fetch(offset, end - offset)
    parts, at = [], 0
    while at < len(raw):
        _, size = _parsed(raw[at : at + _HEADER.size])
        parts.append(raw[at + _HEADER.size : at + _HEADER.size + size])
        at += _HEADER.size + _padded(size)
    inside = sum(_count_aligned(part) for part in parts)
    if inside or at != len(raw):
        raise RecordError(f"corrupt size: {inside} other records begin inside this one", num_lost=1 + inside)
    return MAGIC.join(parts)


def next_record(fetch: Fetch, at: int, limit: int) -> int:
    """Return the offset of the first record that begins at or behind `at`; `limit` if there is none."""
    at += -at % 4
    while at < limit:
        chunk = fetch(at, min(_SEARCH + _HEADER.size, limit - at))
        found = chunk.find(MAGIC)
        while found >= 0:
            if found % 4 == 0 and found + 8 <= len(chunk) and chunk[found + 7] >> 5 in (_WHOLE, _FIRST):
                return at + found
            found = chunk.find(MAGIC, found + 1)
        at += _SEARCH
    return limit


def _record_at(fetch: Fetch, offset: int, limit: int) -> Record:
    """Parse the headers of the record at `offset`."""
    start = fetch(offset, _FIRST_BYTES)
    kind, size = _checked(start[: _HEADER.size], (_WHOLE, _FIRST))
    end = _end_of(offset, size, limit)
    if kind == _WHOLE:
        return Record(offset, end, size, start[_HEADER.size : _HEADER.size + size])
    head, num_bytes = fetch(offset + _HEADER.size, min(size, _FIRST_BYTES)), size
    while kind != _LAST:
        kind, size = _header_at(fetch, end, limit, (_MIDDLE, _LAST))
        head += MAGIC + fetch(end + _HEADER.size, min(size, _FIRST_BYTES))
        num_bytes += len(MAGIC) + size
        end = _end_of(end, size, limit)
    return Record(offset, end, num_bytes, head)


def _header_at(fetch: Fetch, offset: int, limit: int, kinds: tuple[int, int]) -> tuple[int, int]:
    return _checked(fetch(offset, min(_HEADER.size, limit - offset)), kinds)


def _checked(block: bytes, kinds: tuple[int, int]) -> tuple[int, int]:
    kind, size = _parsed(block)
    if kind not in kinds:
        raise RecordError(f"part {kind} of a record where part {kinds[0]} or {kinds[1]} must follow")
    return kind, size


def _parsed(block: bytes) -> tuple[int, int]:
    if len(block) < _HEADER.size:
        raise RecordError(f"truncated: {len(block)} of {_HEADER.size} header bytes are left", "truncated")
    magic, word = _HEADER.unpack(block)
    if magic != MAGIC:
        raise RecordError(f"no magic number: {magic.hex()} for {MAGIC.hex()}")
    return word >> 29, word & (1 << 29) - 1


def _end_of(offset: int, size: int, limit: int) -> int:
    end = offset + _HEADER.size + _padded(size)
    if end > limit:
        raise RecordError(f"truncated: {size} bytes of data, {limit - offset - _HEADER.size} left", "truncated")
    return end


def _padded(size: int) -> int:
    return size + -size % 4


def _count_aligned(part: bytes) -> int:
    """Return how many magic numbers are at multiples of 4."""
    count, found = 0, part.find(MAGIC)
    while found >= 0:
        count += found % 4 == 0
        found = part.find(MAGIC, found + 1)
    return count
