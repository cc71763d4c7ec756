"""Samples in tar shards: KEY.jpg + KEY.cls, read in order or by index, every fault named by shard, member and byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .storage import Source, is_local, normalise, windowed
from .tar import Fetch, Gap, Member, TarError, iter_members, read_member, split_name

JPEG_SUFFIXES = ("jpg", "jpeg")
_MAX_LABEL = 2**31 - 1
_MAX_LABEL_BYTES = 64
_RUN_BYTES = 32 << 20  # the longest stretch fetched by one read
_SEQUENTIAL_WINDOW = 4 << 20
_REMOTE_WINDOW = 16 << 20
_INDEX_WINDOW = 2048  # a .cls header and its data in one read, without the JPEG after it
_REMOTE_THREADS = 16


class Sample(NamedTuple):  # not a dataclass: made thousands of times a second
    """One face: `label` as its shard says, `offset` and `num_bytes` of all its members with headers and padding."""

    key: str
    label: int
    jpeg: bytes
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Damage in a shard; `num_lost` samples are known to be lost by it (0: nothing but a rule was broken)."""

    shard: str
    member: str | None
    offset: int
    reason: str
    num_lost: int = 1

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
        if jpeg is None or label is None:
            present, missing = (jpeg, "cls") if jpeg else (label, "jpg")
            assert present is not None
            return _Incomplete(key, missing, self._fault(present, f"no .{missing} member with this key"))
        for member in (jpeg, label):
            if not member.is_file:
                return self._fault(member, f"a link or special file (tar type {member.type.decode()})")
        if key in self.seen:
            return self._fault(first, f"duplicate key {key} in this shard")
        self.seen.add(key)
        data = self.fetch(jpeg.data, jpeg.size) if self.read_jpeg else b""
        try:
            value = parse_label(self.fetch(label.data, min(label.size, _MAX_LABEL_BYTES)), self.num_classes)
        except ValueError as error:
            return self._fault(label, str(error))
        return Sample(key, value, data, first.offset, group[-1][1].end - first.offset)

    def _fault(self, member: Member, reason: str) -> Fault:
        return Fault(shard=self.shard, member=member.name, offset=member.offset, reason=reason)


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
        yield Fault(shard=shard, member=f"{key}.{suffix}", offset=gap.offset, reason=gap.reason)
    if not lost:
        num_lost = 0 if gap.harmless else 1
        yield Fault(shard=shard, member=gap.member, offset=gap.offset, reason=gap.reason, num_lost=num_lost)


def read_samples(shards: Sequence[str], index: SampleIndex) -> list[Sample | Fault]:
    """Read the samples of `index` from `shards`, in the order of the index; a Fault stands where one cannot be read.

    Samples that lie side by side in a shard, in whatever order they are asked for, are fetched by one read of at most
    32 MiB; object stores are asked by up to 16 threads. Headers are checked again, the label must be `source_label`.
    """
    out: list[Sample | Fault | None] = [None] * len(index)
    order = np.lexsort((index.offset, index.shard))
    for number, ids in _split_where(order, np.diff(index.shard[order]) != 0):
        shard = shards[int(index.shard[number])]
        _read_shard(shard, index, ids, out)
    return out  # type: ignore[return-value]  # every place is filled


def _split_where(order: np.ndarray, breaks: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Split `order` after the positions where `breaks` is true: (first id, ids) of every part."""
    parts = np.split(order, np.flatnonzero(breaks) + 1) if len(order) else []
    return [(int(part[0]), part) for part in parts]


def _read_shard(shard: str, index: SampleIndex, ids: np.ndarray, out: list[Sample | Fault | None]) -> None:
    """Fill `out` at `ids`, all of one shard and in the order of their offsets."""
    offsets = index.offset[ids]
    ends = offsets + index.num_bytes[ids]
    breaks = (offsets[1:] != ends[:-1]) | (offsets[1:] // _RUN_BYTES != offsets[:-1] // _RUN_BYTES)
    runs = np.flatnonzero(np.concatenate(([True], breaks, [True])))
    positions, starts, stops = ids.tolist(), offsets.tolist(), ends.tolist()
    labels = index.source_label[ids].tolist()
    try:
        source = Source(shard)
    except ValueError as error:
        reason = str(error).removeprefix(f"{shard}: ")
        for i, position in enumerate(positions):
            out[position] = Fault(shard=shard, member=None, offset=starts[i], reason=reason)
        return

    def read_run(bounds: tuple[int, int]) -> None:
        first, last = bounds
        base = starts[first]
        data = source.read(base, stops[last - 1] - base)
        fetch = _slicer(data, base)
        for i in range(first, last):
            out[positions[i]] = _parse_sample(shard, fetch, starts[i], stops[i], labels[i])

    bounds = list(zip(runs[:-1].tolist(), runs[1:].tolist(), strict=True))
    with source:
        if is_local(shard) or len(bounds) == 1:
            for run in bounds:
                read_run(run)
        else:
            with ThreadPoolExecutor(min(_REMOTE_THREADS, len(bounds))) as pool:
                list(pool.map(read_run, bounds))


def _slicer(data: bytes, base: int) -> Callable[[int, int], bytes]:
    def fetch(offset: int, count: int) -> bytes:
        return data[offset - base : offset - base + count]

    return fetch


def _parse_sample(shard: str, fetch: Fetch, start: int, stop: int, expected: int) -> Sample | Fault:
    """Parse the members in [start, stop): exactly one key, with .jpg, .cls and the expected label."""
    jpeg = label = None
    key = name = ""
    at = start
    try:
        while at < stop:
            member = read_member(fetch, at, stop)
            if member is None:
                raise TarError(at, "zeros where the index has a tar header")
            name = member.name
            own_key, suffix = split_name(name)
            if own_key and member.type not in b"3456":
                if key and own_key != key:
                    raise TarError(at, f"not a member of sample {key}, which the index has here", name)
                key = own_key
                if suffix == "cls" and member.is_file:
                    label = parse_label(fetch(member.data, min(member.size, _MAX_LABEL_BYTES)))
                    if label != expected:
                        raise TarError(at, f"label is {label}, the index says {expected}", name)
                elif suffix in JPEG_SUFFIXES and member.is_file and jpeg is None:
                    jpeg = fetch(member.data, member.size)
            at = member.end
        if jpeg is None or label is None:
            raise TarError(start, f"no .{'jpg' if jpeg is None else 'cls'} member with this key", name)
    except TarError as error:
        return Fault(shard=shard, member=error.member, offset=error.offset, reason=error.reason)
    except ValueError as error:
        return Fault(shard=shard, member=name, offset=at, reason=str(error))
    return Sample(key, label, jpeg, start, stop - start)
