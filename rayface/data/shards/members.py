"""Members of a tar: find the image and the label of a sample, and parse labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from rayface.data.classes import MAX_LABEL
from rayface.data.decode import SNIFF_BYTES, image_format
from rayface.data.shards.tar import Fetch, Member, member_blocks
from rayface.values import counted

_JPEG_SUFFIXES = frozenset(("jpg", "jpeg", "jpe", "jfif"))
IMAGE_SUFFIXES = _JPEG_SUFFIXES | {"png", "webp", "bmp", "tif", "tiff", "gif"}
LABEL_SUFFIXES = ("cls", "json", "txt")  # in order of preference
_SUFFIXES = IMAGE_SUFFIXES.union(LABEL_SUFFIXES)
MAX_TEXT_BYTES = 64  # read of a .cls or .txt member; a longer text is no label
_MAX_JSON_BYTES = 1 << 20
_SUFFIX_OF_FORMAT = {"JPEG": "jpg", "PNG": "png", "WebP": "webp", "BMP": "bmp", "TIFF": "tif", "GIF": "gif"}
_BOM = b"\xef\xbb\xbf"


class MemberName(NamedTuple):
    """A member's name, split.

    Attributes:
        group: the key that WebDataset sees: the path up to the first dot of its last part; empty for hidden files.
        key: the name without an image or label suffix, so that name.0001.jpg and name.0001.cls form a sample of their
            own; the group for other members.
        suffix: lower-case image or label suffix, or empty.
    """

    group: str
    key: str
    suffix: str


def parse_name(name: str) -> MemberName:
    """Split the name of a member."""
    folder = name.rfind("/") + 1
    first = name.find(".", folder)
    if first < 0:
        return MemberName(name, name, "")
    if first == folder:
        return MemberName("", "", "")
    last = name.rfind(".")
    suffix = name[last + 1 :].lower()
    if suffix in _SUFFIXES:
        return MemberName(name[:first], name[:last], suffix)
    return MemberName(name[:first], name[:first], "")


class BadMemberError(ValueError):
    """A member that makes its sample invalid; `kind` as in Fault."""

    def __init__(self, member: Member, kind: str, reason: str):
        super().__init__(reason)
        self.member, self.kind = member, kind


Image = bytes | memoryview
"""Bytes of an encoded image."""


@dataclass(slots=True)
class SampleMembers:
    """The members with one key: the image (a JPEG if there are several), and the labels by suffix."""

    image: Member | None = None
    labels: dict[str, Member] = field(default_factory=dict)

    def read(self, fetch: Fetch, num_classes: int | None = None, *, read_image: bool = True) -> tuple[int, bytes]:
        """Return (label, image bytes) of a sample that has both.

        Raises:
            BadMemberError: an invalid member."""
        assert self.image is not None
        _refuse_link(self.image)
        data = fetch(self.image.data, self.image.size) if read_image else b""
        return read_label(self.labels, fetch, num_classes), data


def _refuse_link(member: Member) -> None:
    if not member.is_file:
        reason = f"a link or special file (tar type {member.type.decode('ascii', 'backslashreplace')})"
        raise BadMemberError(member, "special file", reason)


def members_by_key(members: Iterable[tuple[MemberName, Member]]) -> dict[str, SampleMembers]:
    """Return the images and labels among `members` by key; skip other fields."""
    found: dict[str, SampleMembers] = {}
    for (_, key, suffix), member in members:
        if not suffix:
            continue
        if key not in found:
            found[key] = SampleMembers()
        of_key = found[key]
        if suffix not in IMAGE_SUFFIXES:
            of_key.labels.setdefault(suffix, member)
        elif of_key.image is None or (
            suffix in _JPEG_SUFFIXES and parse_name(of_key.image.name).suffix not in _JPEG_SUFFIXES
        ):
            of_key.image = member
    return found


def samples_among(found: dict[str, SampleMembers], group: str) -> list[str]:
    """Return the keys that have an image and a label; only the group itself if it has both, as WebDataset reads it."""
    complete = [key for key, members in found.items() if members.image and members.labels]
    return [group] if group in complete else complete


def read_label(labels: dict[str, Member], fetch: Fetch, num_classes: int | None = None) -> int:
    """Return the label from .cls, .json ({"label": 3}) or .txt, the first valid one in this order.

    Raises:
        BadMemberError: no valid label."""
    problem: BadMemberError | None = None
    for suffix in LABEL_SUFFIXES:
        member = labels.get(suffix)
        if member is None:
            continue
        _refuse_link(member)
        parse, limit = (_json_label, _MAX_JSON_BYTES) if suffix == "json" else (_text_label, MAX_TEXT_BYTES)
        try:
            return _in_range(parse(fetch(member.data, min(member.size, limit))), num_classes)
        except ValueError as error:
            problem = problem or BadMemberError(member, "label", str(error))
            if suffix == "cls":  # a .json or .txt beside it may hold anything
                break
    assert problem is not None
    raise problem


def _text_label(text: bytes) -> int:
    digits = text.strip().removeprefix(_BOM)
    if digits.isdigit():
        return int(digits)
    shown = text[:20].decode("ascii", "backslashreplace")
    negative = digits[:1] == b"-" and digits[1:].isdigit()
    raise ValueError(f"label {shown!r} is {'negative' if negative else 'not an integer'}")


def _json_label(text: bytes) -> int:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError('no label: the member is not JSON with {"label": N}') from None
    label = value.get("label") if isinstance(value, dict) else None
    if type(label) is not int:  # a bool is an int, but no label
        raise ValueError('no label: the JSON has no integer "label"')
    if label < 0:
        raise ValueError(f"label {label} is negative")
    return label


def _in_range(label: int, num_classes: int | None) -> int:
    if label > MAX_LABEL or (num_classes is not None and label >= num_classes):
        raise ValueError(f"label {label} is out of range: {counted(num_classes or MAX_LABEL + 1, 'class')}")
    return label


def encode_sample(key: str, label: int, image: Image) -> bytes:
    """Return the tar members KEY.cls and KEY.jpg, or .png and so on by the image's content; same input, same bytes."""
    # One join: an image is copied once.
    return b"".join((*member_blocks(image_name(key, image), image), *member_blocks(f"{key}.cls", b"%d" % label)))


def sample_size(key: str, image: Image) -> int:
    """Return the number of bytes that `encode_sample` returns for a key and an image, with any label."""
    blocks = (*member_blocks(image_name(key, image), image), *member_blocks(f"{key}.cls", b"0"))
    return sum(map(len, blocks))


def image_name(key: str, image: Image) -> str:
    """Return KEY.jpg, or .png and so on by the image's content."""
    return f"{key}.{_SUFFIX_OF_FORMAT.get(image_format(bytes(image[:SNIFF_BYTES])) or '', 'jpg')}"
