"""Parser of samples: groups neighbouring members of a tar and turns them into samples and faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
from rayface.data.shards.samples import Fault, Sample
from rayface.data.shards.tar import Fetch, Gap, Member

_MAX_SAMPLE_BYTES = 2**31 - 1  # the index counts bytes in int32


@dataclass
class Group:
    """Consecutive members that may form a sample; if `beside_damage`, a part of it may be lost."""

    name: str = ""
    members: list[tuple[MemberName, Member]] = field(default_factory=list)
    beside_damage: bool = False
    suffixes: dict[str, set[str]] = field(default_factory=dict)  # by key
    complete: str = ""  # key with an image and a label

    def ends_before(self, name: MemberName) -> bool:
        """Return whether a member starts another group.

        It does if its group has another name, if its key has that suffix already, or if another key is complete:
        name.0001.jpg, name.0001.cls | name.0002.jpg. It does not while the sample that WebDataset sees is incomplete:
        a.cls, a.mask.json, a.mask.png, a.jpg form one sample.
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


def group_members(items: Iterator[Member | Gap], unused: list[Member]) -> Iterator[Group | Gap]:
    """Group consecutive members; a gap ends a group. Hidden files are added to `unused`."""
    group = Group()
    for item in items:
        if isinstance(item, Gap):
            if group.members:
                group.beside_damage |= not item.harmless
                yield group
            yield item
            group = Group(beside_damage=not item.harmless)
            continue
        name = parse_name(item.name)
        if item.type in b"3456":  # folders, devices
            continue
        if not name.group:
            unused.append(item)
            continue
        if group.ends_before(name):
            yield group
            group = Group()
        group.add(name, item)
    if group.members:
        yield group


@dataclass(frozen=True)
class Incomplete:
    """A key without image or label: a fault, unless a neighbouring gap explains it."""

    key: str
    missing: str
    fault: Fault


class SampleParser:
    """Turns a group of members into samples and faults; one without image and label is added to `unused`."""

    def __init__(self, shard: str, fetch: Fetch, num_classes: int | None, read_jpeg: bool, unused: list[Member]):
        self.shard, self.fetch, self.num_classes, self.read_jpeg = shard, fetch, num_classes, read_jpeg
        self.unused = unused
        self.complete: set[str] = set()  # keys with image and label
        self.incomplete: set[str] = set()
        self.suffixes = {"image": "jpg", "label": "cls"}  # of the last sample

    def __call__(self, group: Group) -> Sequence[Sample | Fault | Incomplete]:
        found = members_by_key(group.members)
        if group.beside_damage:
            found = self._without_other_labels(found)
        samples = samples_among(found, group.name)
        entries: list[Sample | Fault | Incomplete] = [self._sample(key, found[key], group) for key in samples]
        others = [key for key in found if key not in samples]
        lone = [key for key in others if not self._is_field(key, group.name)]
        for key in lone:
            entries += self._lone(key, found[key], found, group)
        if not entries and lone == others:
            entries += self._unnamed_images(group)
            if not entries:
                self.unused += [member for _, member in group.members]
        return entries

    def _without_other_labels(self, found: dict[str, SampleMembers]) -> dict[str, SampleMembers]:
        """Drop labels of another suffix than the last sample's: if .cls is corrupt, .txt may hold anything."""
        for members in found.values():
            if self.suffixes["label"] not in members.labels:
                members.labels.clear()
        return {key: members for key, members in found.items() if members.image or members.labels}

    def _sample(self, key: str, members: SampleMembers, group: Group) -> Sample | Fault:
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
        self.suffixes = {
            "image": parse_name(members.image.name).suffix,
            "label": min(members.labels, key=LABEL_SUFFIXES.index),
        }
        return Sample(key, label, image, first.offset, num_bytes)

    def _is_field(self, key: str, group: str) -> bool:
        """Return whether a lone image or label is another field of a sample: a.thumb.jpg beside a.jpg and a.cls."""
        while len(key) > len(group):
            key = key.rpartition(".")[0]
            if key in self.complete:
                return True
        return False

    def _lone(
        self, key: str, members: SampleMembers, found: dict[str, SampleMembers], group: Group
    ) -> list[Incomplete]:
        """Return the fault of a lone image or label; .json and .txt count if they hold a label."""
        member = members.image or members.labels.get("cls")
        if member is None:
            try:
                read_label(members.labels, self.fetch)
            except BadMemberError:
                return []
            member = next(iter(members.labels.values()))
        missing = self.suffixes["label" if members.image else "image"]
        what = f"label ({', '.join(f'.{suffix}' for suffix in LABEL_SUFFIXES)})" if members.image else "image"
        reason, num_lost = f"no {what} with this key beside it", 1
        if key in self.incomplete:  # was counted as lost before
            reason, num_lost = f"{reason}: the members of a sample must be neighbours (tar --sort=name)", 0
        elif not members.image and any(other.startswith(f"{key}.") and found[other].image for other in found):
            num_lost = 0  # may be the label of these images, which are counted
        elif not members.image and (unread := self._unread_image(key, group)):
            member, kind = unread
            reason = f"{kind} image of a format or suffix that is not read: save it as .jpg or .png"
        self.incomplete.add(key)
        return [Incomplete(key, missing, self._fault(member, "missing member", reason, num_lost))]

    def _unread_image(self, key: str, group: Group) -> tuple[Member, str] | None:
        """Return the member beside a lone label that only its content shows to be an image, and its format."""
        for name, member in group.members:
            if name.group == key and not name.suffix and (kind := self._format(member)):
                return member, kind
        return None

    def _format(self, member: Member) -> str | None:
        """Return the format of an image by its content; None for formats whose first bytes may also start a text."""
        kind = image_format(self.fetch(member.data, min(member.size, SNIFF_BYTES))) if member.is_file else None
        return None if kind in ("BMP", "PNM") else kind

    def _unnamed_images(self, group: Group) -> Sequence[Fault]:
        """Return a fault for each member that only its content shows to be an image."""
        faults = []
        for _, member in group.members:
            if kind := self._format(member):
                reason = f"{kind} image without a label, or with a suffix that is not read"
                faults.append(self._fault(member, "missing member", reason))
        return faults

    def _fault(self, member: Member, kind: str, reason: str, num_lost: int = 1) -> Fault:
        return Fault(
            shard=self.shard, member=member.name, offset=member.offset, reason=reason, num_lost=num_lost, kind=kind
        )


def _extent(key: str, group: Group) -> tuple[Member, Member]:
    """Return the first and the last member of a sample: its group without images and labels of other keys at the ends.

    A key that extends this one (a.thumb of a) is a field of the sample.
    """
    own = [member for name, member in group.members if not name.suffix or f"{name.key}.".startswith(f"{key}.")]
    return own[0], own[-1]
