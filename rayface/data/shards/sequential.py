"""Read a whole shard from front to back: every sample and every fault, named by shard, member and byte."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from rayface.data.shards.members import parse_name
from rayface.data.shards.sample_parser import Incomplete, SampleParser, group_members
from rayface.data.shards.samples import NOT_A_TAR, Fault, Sample
from rayface.data.shards.tar import BLOCK, Fetch, Gap, Member, iter_members
from rayface.storage import Source, is_local, normalise, windowed

_SEQUENTIAL_WINDOW = 4 << 20
_REMOTE_WINDOW = 16 << 20
_INDEX_WINDOW = 2048  # one read covers a .cls header and its data, but not the JPEG after it
_COMPRESSION = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\3\4": "zip",
}


def scan_shard(
    path: str | Path, *, num_classes: int | None = None, read_jpeg: bool = True, name_unused: bool = False
) -> Iterator[Sample | Fault]:
    """Read a whole shard strictly: yield every sample and every fault, in the order of the file.

    A sample is an image (.jpg, .png, .webp, ...) and a label (.cls, .json {"label": 3} or .txt) of the same name except
    for the suffix, next to each other. A group with only one of the two is a fault. After a corrupt header, scanning
    resumes at the next valid one; a truncated shard ends with a fault. Memory: two windows of at most 16 MiB, and the
    keys of the shard.

    Args:
        num_classes: labels must be below it; None: any label.
        read_jpeg: without it samples carry no image bytes, which are not read from a local disk.
        name_unused: yield also, last, a fault for each file that is no part of a sample.
    """
    shard = normalise(path)
    with Source(shard) as source:
        width = _SEQUENTIAL_WINDOW if read_jpeg else _INDEX_WINDOW
        fetch = windowed(source, width if is_local(shard) else _REMOTE_WINDOW)
        items = iter_members(fetch, source.size)
        start = list(_until_member(items))
        if reason := _not_a_tar(start, fetch, source.size):
            yield Fault(shard=shard, member=None, reason=reason, kind=NOT_A_TAR)
            return
        unused: list[Member] = []
        groups = group_members(itertools.chain(start, items), unused)
        parser = SampleParser(shard, fetch, num_classes, read_jpeg, unused)
        parsed = ((group,) if isinstance(group, Gap) else parser(group) for group in groups)
        yield from _explain_gaps(shard, itertools.chain.from_iterable(parsed))
        if name_unused:
            yield from (_unused_fault(shard, member) for member in unused)


def _unused_fault(shard: str, member: Member) -> Fault:
    is_hidden = not parse_name(member.name).group
    kind, reason = ("hidden", "hidden, or of a tool") if is_hidden else ("other file", "no part of a sample")
    return Fault(shard=shard, member=member.name, offset=member.offset, reason=reason, kind=kind)


def _until_member(items: Iterator[Member | Gap]) -> Iterator[Member | Gap]:
    """Yield everything up to and including the first member."""
    for item in items:
        yield item
        if isinstance(item, Member):
            return


def _not_a_tar(start: list[Member | Gap], fetch: Fetch, size: int) -> str | None:
    """Return why a file is not a tar; None if it has a member or is an empty archive."""
    if not size:
        return "the file is empty"
    damage = [item for item in start if isinstance(item, Gap) and not item.harmless]
    if not damage or damage[0].member or isinstance(start[-1], Member):
        return None
    head = fetch(0, min(size, BLOCK))
    packed = next((name for magic, name in _COMPRESSION.items() if head.startswith(magic)), None)
    return f"not a tar but {packed}: unpack it" if packed else f"no tar member in {size} bytes: {damage[0].reason}"


def _explain_gaps(shard: str, entries: Iterator[Sample | Fault | Incomplete | Gap]) -> Iterator[Sample | Fault]:
    """Report a gap and the incomplete samples on both sides of it as one loss, at the gap."""
    gap: Gap | None = None
    lost: dict[str, str] = {}  # key -> suffix of the member lost in the gap
    held: Incomplete | None = None
    for entry in entries:
        if isinstance(entry, Gap):
            if gap:
                yield from _gap_faults(shard, gap, lost)
            gap, lost, held = entry, {held.key: held.missing} if held else {}, None
            continue
        if gap and isinstance(entry, Incomplete):
            lost.setdefault(entry.key, entry.missing)
        if gap:
            yield from _gap_faults(shard, gap, lost)
        elif held:
            yield held.fault
        held = entry if isinstance(entry, Incomplete) and not gap else None
        gap = None
        if not isinstance(entry, Incomplete):
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
