"""Writes RecordIO files byte by byte, from the description of the format."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MAGIC = 0xCED7230A


class Written(NamedTuple):
    """A .rec file: its bytes, and where each record begins."""

    data: bytes
    offsets: list[int]


def image_content(label: float | Sequence[float], number: int, image: bytes) -> bytes:
    """The header of an image (flag, label, id, second id; several labels follow it), and the image."""
    if isinstance(label, int | float):
        return struct.pack("<IfQQ", 0, label, number, 0) + image
    return struct.pack("<IfQQ", len(label), 0, number, 0) + struct.pack(f"<{len(label)}f", *label) + image


def framed(content: bytes) -> bytes:
    """A record: cut where the content has the magic number at a multiple of 4; each part padded to 4 bytes."""
    magic = struct.pack("<I", MAGIC)
    cuts = [at for at in range(0, len(content) - 3, 4) if content[at : at + 4] == magic]
    parts = [
        content[start:stop] for start, stop in zip([0, *[at + 4 for at in cuts]], [*cuts, len(content)], strict=True)
    ]
    found = b""
    for number, part in enumerate(parts):
        kind = 0 if len(parts) == 1 else 1 if number == 0 else 3 if number == len(parts) - 1 else 2
        found += magic + struct.pack("<I", kind << 29 | len(part)) + part + bytes(-len(part) % 4)
    return found


def records(contents: Sequence[bytes]) -> Written:
    data, offsets = b"", []
    for content in contents:
        offsets.append(len(data))
        data += framed(content)
    return Written(data, offsets)


def insightface(images: Sequence[tuple[int, bytes]]) -> Written:
    """Images (label, bytes), ordered by label, as record 1, 2, ...; record 0 and a table for each identity."""
    labels = sorted({label for label, _ in images})
    first = len(images) + 1
    contents = [image_content([first, first + len(labels)], 0, b"")]
    contents += [image_content(label, number, image) for number, (label, image) in enumerate(images, 1)]
    for number, label in enumerate(labels, first):
        rows = [row for row, (own, _) in enumerate(images, 1) if own == label]
        contents.append(image_content([rows[0], rows[-1] + 1], number, b""))
    return records(contents)


def save(folder: Path, written: Written, *, idx: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.rec").write_bytes(written.data)
    if idx:
        lines = [f"{number}\t{offset}\n" for number, offset in enumerate(written.offsets)]
        (folder / "train.idx").write_text("".join(lines))
    return folder
