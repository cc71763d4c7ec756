"""Samples in tar shards: KEY.jpg + KEY.cls, read in order or by index, every fault named by shard, member and byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .storage import Source, is_local, normalise, windowed
from .tar import Fetch, Gap, Member, TarError, iter_members, read_member, split_name

JPEG_SUFFIXES = ("jpg", "jpeg")
_MAX_LABEL = 2**31 - 1
_MAX_SAMPLE_BYTES = 2**31 - 1  # what the index can count
MAX_LABEL_BYTES = 64  # what is read of a .cls member; more is no label anyway
_SEQUENTIAL_WINDOW = 4 << 20
_REMOTE_WINDOW = 16 << 20
_INDEX_WINDOW = 2048  # a .cls header and its data in one read, without the JPEG after it


class Sample(NamedTuple):  # not a dataclass: made thousands of times a second
    """One face: `label` as its shard says, `offset` and `num_bytes` of all its members with headers and padding."""

    key: str
    label: int
    jpeg: bytes
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Damage in a shard; `num_lost` samples are known to be lost by it (0: nothing but a rule was broken).

    `kind` sorts faults for a summary: header, truncated, missing member, label, duplicate key, special file, jpeg,
    index, image (of a converter), or (of whole shards) size, count, digest, unlisted.
    """

    shard: str
    member: str | None
    offset: int
    reason: str
    num_lost: int = 1
    kind: str = "jpeg"

    def __str__(self) -> str:
        return f"{self.shard}: {self.member + ' ' if self.member else ''}at byte {self.offset}: {self.reason}"


@dataclass(frozen=True)
class SampleIndex:
    """Where every sample lies: numpy columns of length N, 24 bytes a sample.

    `shard` int32 number of the shard; `offset` int64 byte of the first tar header; `num_bytes` int32 with headers and
    padding; `label` int32 in the joint label space; `source_label` int32 as the shard's .cls says.
    """

    shard: np.ndarray
    offset: np.ndarray
    num_bytes: np.ndarray
    label: np.ndarray
    source_label: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def select(self, ids: np.ndarray | slice) -> SampleIndex:
        """Return the samples `ids` (positions, a boolean mask or a slice), in that order."""
        columns = (self.shard, self.offset, self.num_bytes, self.label, self.source_label)
        return SampleIndex(*(column[ids] for column in columns))


class ShardRows:
    """Positions of every shard's samples, from an index column `shard` (N,): a slice, or an array if out of order.

    One pass over the column for all shards. Memory: 8 bytes a sample if out of order.
    """

    def __init__(self, shard: np.ndarray, num_shards: int) -> None:
        self._order: np.ndarray | None = None
        if (shard[1:] < shard[:-1]).any():
            self._order = np.argsort(shard, kind="stable")
            shard = shard[self._order]
        self._bounds: list[int] = np.searchsorted(shard, np.arange(num_shards + 1)).tolist()

    def __getitem__(self, number: int) -> slice | np.ndarray:
        rows = slice(self._bounds[number], self._bounds[number + 1])
        return rows if self._order is None else self._order[rows]

    def positions(self, number: int) -> np.ndarray:
        """Return the same as an array (n,) int64."""
        rows = self[number]
        return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows


def parse_label(text: bytes, num_classes: int | None = None) -> int:
    """Return the label in a .cls member; ValueError says what is wrong with it."""
    digits = text.strip()
    if not digits.isdigit():
        shown = text[:20].decode("ascii", "backslashreplace")
        negative = digits[:1] == b"-" and digits[1:].isdigit()
        raise ValueError(f"label {shown!r} is {'negative' if negative else 'not an integer'}")
    label = int(digits)
    if label > _MAX_LABEL or (num_classes is not None and label >= num_classes):
        raise ValueError(f"label {label} is out of range: {num_classes or _MAX_LABEL + 1} classes")
    return label


def scan_shard(path: str | Path, *, num_classes: int | None = None, read_jpeg: bool = True) -> Iterator[Sample | Fault]:
    """Read a whole shard from front to back, strictly: every sample and every fault, in the order of the file.

    After a smashed header reading goes on at the next valid one; a truncated shard ends with a Fault. With
    `read_jpeg=False` samples carry no JPEG bytes and, on a local disk, these are not read. Memory: two windows of at
    most 16 MiB, and the keys of the shard.
    """
    shard = normalise(path)
    with Source(shard) as source:
        width = _SEQUENTIAL_WINDOW if read_jpeg else _INDEX_WINDOW
        fetch = windowed(source, width if is_local(shard) else _REMOTE_WINDOW)
        entries = _groups(iter_members(fetch, source.size))
        judge = _Judge(shard, fetch, num_classes, read_jpeg)
        yield from _explain_gaps(shard, (e if isinstance(e, Gap) else judge(e) for e in entries))


def _groups(items: Iterator[Member | Gap]) -> Iterator[list[tuple[str, Member]] | Gap]:
    """Gather consecutive members with one key; a gap ends a group, and so does a suffix that comes twice."""
    group: list[tuple[str, Member]] = []
    current = ""
    for item in items:
        if isinstance(item, Gap):
            if group:
                yield group
            group = []
            yield item
            continue
        key, suffix = split_name(item.name)
        if not key or item.type in b"3456":
            continue
        if group and (key != current or any(suffix == other for other, _ in group)):
            yield group
            group = []
        current = key
        group.append((suffix, item))
    if group:
        yield group


@dataclass(frozen=True)
class _Incomplete:
    """A group without .jpg or .cls: a fault of its own, unless a gap beside it explains what is missing."""

    key: str
    missing: str
    fault: Fault


class _Judge:
    """Turns a group of members into a Sample, a Fault, or None where the group is no sample at all."""

    def __init__(self, shard: str, fetch: Fetch, num_classes: int | None, read_jpeg: bool):
        self.shard, self.fetch, self.num_classes, self.read_jpeg = shard, fetch, num_classes, read_jpeg
        self.seen: set[str] = set()

    def __call__(self, group: list[tuple[str, Member]]) -> Sample | Fault | _Incomplete | None:
        jpeg = next((m for suffix, m in group if suffix in JPEG_SUFFIXES), None)
        label = next((m for suffix, m in group if suffix == "cls"), None)
        if jpeg is None and label is None:
            return None
        first = group[0][1]
        key = split_name(first.name)[0]
        num_bytes = group[-1][1].end - first.offset
        if jpeg is None or label is None:
            present, missing = (jpeg, "cls") if jpeg else (label, "jpg")
            assert present is not None
            fault = self._fault(present, "missing member", f"no .{missing} member with this key")
            return _Incomplete(key, missing, fault)
        for member in (jpeg, label):
            if not member.is_file:
                reason = f"a link or special file (tar type {member.type.decode()})"
                return self._fault(member, "special file", reason)
        if num_bytes > _MAX_SAMPLE_BYTES:
            return self._fault(first, "special file", f"sample of {num_bytes} bytes, more than {_MAX_SAMPLE_BYTES}")
        if key in self.seen:
            return self._fault(first, "duplicate key", f"duplicate key {key} in this shard")
        self.seen.add(key)
        data = self.fetch(jpeg.data, jpeg.size) if self.read_jpeg else b""
        try:
            value = parse_label(self.fetch(label.data, min(label.size, MAX_LABEL_BYTES)), self.num_classes)
        except ValueError as error:
            return self._fault(label, "label", str(error))
        return Sample(key, value, data, first.offset, num_bytes)

    def _fault(self, member: Member, kind: str, reason: str) -> Fault:
        return Fault(shard=self.shard, member=member.name, offset=member.offset, reason=reason, kind=kind)


def _explain_gaps(shard: str, entries: Iterator[Sample | Fault | _Incomplete | Gap | None]) -> Iterator[Sample | Fault]:
    """A gap and the incomplete samples on either side of it are one loss: report each lost sample once, at the gap."""
    gap: Gap | None = None
    lost: dict[str, str] = {}  # key -> the member that the gap swallowed
    held: _Incomplete | None = None
    for entry in entries:
        if isinstance(entry, Gap):
            if gap:
                yield from _gap_faults(shard, gap, lost)
            gap, lost, held = entry, {held.key: held.missing} if held else {}, None
            continue
        if entry is None:
            continue
        if gap and isinstance(entry, _Incomplete):
            lost.setdefault(entry.key, entry.missing)
        if gap:
            yield from _gap_faults(shard, gap, lost)
        elif held:
            yield held.fault
        held = entry if isinstance(entry, _Incomplete) and not gap else None
        gap = None
        if not isinstance(entry, _Incomplete):
            yield entry
    if gap:
        yield from _gap_faults(shard, gap, lost)
    elif held:
        yield held.fault


def _gap_faults(shard: str, gap: Gap, lost: dict[str, str]) -> Iterator[Fault]:
    for key, suffix in lost.items():
        yield Fault(shard=shard, member=f"{key}.{suffix}", offset=gap.offset, reason=gap.reason, kind=gap.kind)
    if not lost:
        yield Fault(
            shard=shard,
            member=gap.member,
            offset=gap.offset,
            reason=gap.reason,
            num_lost=0 if gap.harmless else 1,
            kind=gap.kind,
        )


def locate_member(shard: str, offset: int, num_bytes: int, suffixes: Sequence[str]) -> tuple[str | None, int]:
    """Return name and byte offset of a sample's member with one of `suffixes`; (None, `offset`) where there is none."""
    try:
        with Source(shard) as source:
            at = offset
            while at < offset + num_bytes:
                member = read_member(source.read, at, offset + num_bytes)
                if member is None:
                    break
                if split_name(member.name)[1] in suffixes:
                    return member.name, member.offset
                at = member.end
    except (TarError, ValueError):
        pass  # the sample cannot be parsed: its beginning is the best that can be named
    return None, offset
