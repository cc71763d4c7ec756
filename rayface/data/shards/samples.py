"""Samples in tar shards: an image and a label with one key, read in order; every fault named by shard, member, byte."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rayface.credentials import mask
from rayface.data.decode import SNIFF_BYTES, image_format
from rayface.data.shards.members import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    BadMemberError,
    MemberName,
    SampleMembers,
    members_by_key,
    parse_name,
    read_label,
    samples_among,
)
from rayface.data.shards.tar import BLOCK, Fetch, Gap, Member, TarError, iter_members, read_member
from rayface.storage import Source, is_local, normalise, windowed

NOT_A_TAR = "not a tar"  # kind of fault
_MAX_SAMPLE_BYTES = 2**31 - 1  # what the index can count
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
    index, name, or (of whole shards) not a tar, not read, labels, size, count, digest, unlisted. Of a converter: what
    it left out, `num_lost` things of a kind: image (cannot be read), no image, hidden, link, special file, folder,
    outside, identity.
    """

    shard: str
    member: str | None
    offset: int
    reason: str
    num_lost: int = 1
    kind: str = "jpeg"

    def __str__(self) -> str:
        return mask(f"{self.shard}: {self.member + ' ' if self.member else ''}at byte {self.offset}: {self.reason}")


@dataclass
class SampleIndex:
    """Where every sample lies: numpy columns of length N, 24 bytes a sample, 20 where both labels are one array.

    Columns are never changed; one may be replaced by an equal one that lies elsewhere in memory.

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
        label = self.label[ids]
        source_label = label if self.source_label is self.label else self.source_label[ids]
        return SampleIndex(self.shard[ids], self.offset[ids], self.num_bytes[ids], label, source_label)


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


def scan_shard(path: str | Path, *, num_classes: int | None = None, read_jpeg: bool = True) -> Iterator[Sample | Fault]:
    """Read a whole shard from front to back, strictly: every sample and every fault, in the order of the file.

    A sample is an image (.jpg, .png, .webp, ...) and a label (.cls, .json {"label": 3} or .txt) with the same name but
    for the suffix, beside each other. A group of members with only one of the two is a fault; with neither, no sample.
    After a smashed header reading goes on at the next valid one; a truncated shard ends with a Fault. With
    `read_jpeg=False` samples carry no JPEG bytes and, on a local disk, these are not read. Memory: two windows of at
    most 16 MiB, and the keys of the shard.
    """
    shard = normalise(path)
    with Source(shard) as source:
        width = _SEQUENTIAL_WINDOW if read_jpeg else _INDEX_WINDOW
        fetch = windowed(source, width if is_local(shard) else _REMOTE_WINDOW)
        items = iter_members(fetch, source.size)
        start = list(_until_member(items))
        if reason := _not_a_tar(start, fetch, source.size):
            yield Fault(shard=shard, member=None, offset=0, reason=reason, kind=NOT_A_TAR)
            return
        groups = _groups(itertools.chain(start, items))
        parser = _SampleParser(shard, fetch, num_classes, read_jpeg)
        parsed = ((group,) if isinstance(group, Gap) else parser(group) for group in groups)
        yield from _explain_gaps(shard, itertools.chain.from_iterable(parsed))


_COMPRESSION = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\3\4": "zip",
}


def _until_member(items: Iterator[Member | Gap]) -> Iterator[Member | Gap]:
    """Yield what comes up to the first member, and that."""
    for item in items:
        yield item
        if isinstance(item, Member):
            return


def _not_a_tar(start: list[Member | Gap], fetch: Fetch, size: int) -> str | None:
    """Return why a file without a single member is no tar, None for one that has some or is an empty archive."""
    if not size:
        return "the file is empty"
    damage = [item for item in start if isinstance(item, Gap) and not item.harmless]
    if not damage or damage[0].member or isinstance(start[-1], Member):
        return None
    head = fetch(0, min(size, BLOCK))
    packed = next((name for magic, name in _COMPRESSION.items() if head.startswith(magic)), None)
    return f"not a tar but {packed}: unpack it" if packed else f"no tar member in {size} bytes: {damage[0].reason}"


@dataclass
class _Group:
    """Consecutive members that may be one sample; `beside_damage` where a part of it may be lost."""

    name: str = ""
    members: list[tuple[MemberName, Member]] = field(default_factory=list)
    beside_damage: bool = False
    suffixes: dict[str, set[str]] = field(default_factory=dict)  # by key
    complete: str = ""  # the key that has an image and a label

    def ends_before(self, name: MemberName) -> bool:
        """Tell whether a member belongs to another group.

        It does with another name, with a suffix that its key has already, and where one key is complete and it has
        another one: name.0001.jpg, name.0001.cls | name.0002.jpg. It does not while the sample that webdataset sees
        is incomplete: a.cls, a.mask.json, a.mask.png, a.jpg are one.
        """
        if name.group != self.name:
            return bool(self.members)
        if not name.suffix:
            return False
        waits = self.name in self.suffixes and self.complete != self.name
        return name.suffix in self.suffixes.get(name.key, ()) or (self.complete not in ("", name.key) and not waits)

    def add(self, name: MemberName, member: Member) -> None:
        self.name = name.group
        self.members.append((name, member))
        if name.suffix:
            found = self.suffixes.setdefault(name.key, set())
            found.add(name.suffix)
            if len(found) > 1 and not found.isdisjoint(IMAGE_SUFFIXES) and not found.isdisjoint(LABEL_SUFFIXES):
                self.complete = name.key


def _groups(items: Iterator[Member | Gap]) -> Iterator[_Group | Gap]:
    """Gather consecutive members; a gap ends a group."""
    group = _Group()
    for item in items:
        if isinstance(item, Gap):
            if group.members:
                group.beside_damage |= not item.harmless
                yield group
            yield item
            group = _Group(beside_damage=not item.harmless)
            continue
        name = parse_name(item.name)
        if not name.group or item.type in b"3456":
            continue
        if group.ends_before(name):
            yield group
            group = _Group()
        group.add(name, item)
    if group.members:
        yield group


@dataclass(frozen=True)
class _Incomplete:
    """A key without image or label: a fault of its own, unless a gap beside it explains what is missing."""

    key: str
    missing: str
    fault: Fault


class _SampleParser:
    """Turns a group of members into its sample and faults; nothing where the group is evidently no sample."""

    def __init__(self, shard: str, fetch: Fetch, num_classes: int | None, read_jpeg: bool):
        self.shard, self.fetch, self.num_classes, self.read_jpeg = shard, fetch, num_classes, read_jpeg
        self.complete: set[str] = set()  # keys that had image and label
        self.incomplete: set[str] = set()
        self.suffixes = {"image": "jpg", "label": "cls"}  # as the last sample had them

    def __call__(self, group: _Group) -> Sequence[Sample | Fault | _Incomplete]:
        found = members_by_key(group.members)
        if group.beside_damage:
            found = self._without_other_labels(found)
        samples = samples_among(found, group.name)
        entries: list[Sample | Fault | _Incomplete] = [self._sample(key, found[key], group) for key in samples]
        others = [key for key in found if key not in samples]
        lone = [key for key in others if not self._is_field(key, group.name)]
        for key in lone:
            entries += self._lone(key, found[key], found)
        return entries or self._unnamed_images(group) if lone == others else entries

    def _without_other_labels(self, found: dict[str, SampleMembers]) -> dict[str, SampleMembers]:
        """Leave out labels that are not of the last sample's kind: .txt may be about anything where .cls is damaged."""
        for members in found.values():
            if self.suffixes["label"] not in members.labels:
                members.labels.clear()
        return {key: members for key, members in found.items() if members.image or members.labels}

    def _sample(self, key: str, members: SampleMembers, group: _Group) -> Sample | Fault:
        assert members.image is not None
        first, last = _extent(key, group)
        num_bytes = last.end - first.offset
        if key in self.complete:
            return self._fault(first, "duplicate key", f"duplicate key {key} in this shard")
        self.complete.add(key)
        if num_bytes > _MAX_SAMPLE_BYTES:
            return self._fault(first, "special file", f"sample of {num_bytes} bytes, more than {_MAX_SAMPLE_BYTES}")
        try:
            label, image = members.read(self.fetch, self.num_classes, read_image=self.read_jpeg)
        except BadMemberError as error:
            return self._fault(error.member, error.kind, str(error))
        self.suffixes = {"image": _suffix(members.image), "label": min(members.labels, key=LABEL_SUFFIXES.index)}
        return Sample(key, label, image, first.offset, num_bytes)

    def _is_field(self, key: str, group: str) -> bool:
        """Tell whether a lone image or label is another field of a sample: thumb.jpg of a where a.jpg and a.cls are."""
        while len(key) > len(group):
            key = key.rpartition(".")[0]
            if key in self.complete:
                return True
        return False

    def _lone(self, key: str, members: SampleMembers, found: dict[str, SampleMembers]) -> list[_Incomplete]:
        """Return the fault of an image without a label or the reverse; a .json or .txt is a label if it says one."""
        member = members.image or members.labels.get("cls")
        if member is None:
            try:
                read_label(members.labels, self.fetch)
            except BadMemberError:
                return []
            member = next(iter(members.labels.values()))
        missing = self.suffixes["label" if members.image else "image"]
        reason, num_lost = f"no .{missing} member with this key beside it", 1
        if key in self.incomplete:  # what was counted as lost before
            reason, num_lost = f"{reason}: the members of a sample must be neighbours (tar --sort=name)", 0
        elif not members.image and any(other.startswith(f"{key}.") and found[other].image for other in found):
            num_lost = 0  # it may be the label of these images, which are counted
        self.incomplete.add(key)
        return [_Incomplete(key, missing, self._fault(member, "missing member", reason, num_lost))]

    def _unnamed_images(self, group: _Group) -> Sequence[Fault]:
        """Return a fault for each image that only its content tells."""
        faults = []
        for _, member in group.members:
            kind = image_format(self.fetch(member.data, min(member.size, SNIFF_BYTES))) if member.is_file else None
            if kind not in (None, "BMP", "PNM"):  # whose first bytes may as well begin a text
                reason = f"{kind} image without a label, or with a suffix that is not read"
                faults.append(self._fault(member, "missing member", reason))
        return faults

    def _fault(self, member: Member, kind: str, reason: str, num_lost: int = 1) -> Fault:
        return Fault(
            shard=self.shard, member=member.name, offset=member.offset, reason=reason, num_lost=num_lost, kind=kind
        )


def _suffix(member: Member) -> str:
    return parse_name(member.name).suffix


def _extent(key: str, group: _Group) -> tuple[Member, Member]:
    """Return the first and the last member of a sample: its group without images and labels of other keys at the ends.

    A key that goes on after this one (thumb.jpg of a) is a field of the sample.
    """
    own = [member for name, member in group.members if not name.suffix or f"{name.key}.".startswith(f"{key}.")]
    return own[0], own[-1]


def _explain_gaps(shard: str, entries: Iterator[Sample | Fault | _Incomplete | Gap]) -> Iterator[Sample | Fault]:
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


def locate_member(shard: str, offset: int, num_bytes: int, suffixes: Collection[str]) -> tuple[str | None, int]:
    """Return name and byte offset of a sample's member with one of `suffixes`; (None, `offset`) where there is none."""
    found: dict[str, Member] = {}
    try:
        with Source(shard) as source:
            at = offset
            while at < offset + num_bytes:
                member = read_member(source.read, at, offset + num_bytes)
                if member is None:
                    break
                name = parse_name(member.name)
                if name.suffix in suffixes:
                    found.setdefault(name.key, member)
                at = member.end
    except (TarError, ValueError):
        pass  # the sample cannot be parsed: its beginning is the best that can be named
    if not found:
        return None, offset
    member = found[min(found, key=len)]  # a.jpg, not a.thumb.jpg
    return member.name, member.offset
