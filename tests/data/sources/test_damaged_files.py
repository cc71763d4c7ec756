"""Damaged .rec, .bin and .zip files: cut at any byte or with flipped bits, every loss is named, nothing crashes."""

import random
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rayface.data.shards.samples import Fault
from rayface.data.sources import BinSource, DatasetSource, RecSource, WebfaceZipSource
from rayface.data.sources.reading import read_images
from rayface.storage import DataError
from tests.data.sources.bin_files import bin_file
from tests.data.sources.rec_files import MAGIC, insightface


def jpeg(seed: int) -> bytes:
    """A JPEG of 8 x 8 pixels, some with RecordIO's magic number in a comment."""
    data = simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    comment = struct.pack("<I", MAGIC) * (seed % 3)
    return data[:20] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + data[20:]


IMAGES = [jpeg(seed) for seed in range(60)]


def zipped() -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, data in enumerate(IMAGES):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.writestr(f"{number // 4}/{number}.jpg", data, method)
    return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A file of 60 images and its source."""

    name: str
    data: bytes
    source: Callable[[Path], DatasetSource]


RECORDS = insightface([(number // 4, data) for number, data in enumerate(IMAGES)])
IDX = "".join(f"{number}\t{offset}\n" for number, offset in enumerate(RECORDS.offsets))
KINDS = {
    "rec": Kind(name="train.rec", data=RECORDS.data, source=RecSource),
    "rec with idx": Kind(name="train.rec", data=RECORDS.data, source=RecSource),
    "bin": Kind(name="lfw.bin", data=bin_file(IMAGES, [True] * 30), source=BinSource),
    "zip": Kind(name="0_0.zip", data=zipped(), source=WebfaceZipSource),
}


def read_all(source: DatasetSource) -> tuple[list[bytes], list[Fault]]:
    source.prepare("")
    found, faults = [], []
    for part in range(len(source.parts())):
        listing = source.list_images(part)
        faults += listing.faults.faults() if listing.faults else []
        for image in read_images(source, part, listing.images):
            faults.append(image) if isinstance(image, Fault) else found.append(image.data)
    return found, faults


def outcome(source: DatasetSource) -> tuple[list[bytes], list[Fault]] | str:
    """Images and faults, or the message if the whole file is refused, as it is if nothing of it can be read."""
    try:
        found, faults = read_all(source)
    except DataError as error:
        return str(error)
    return (found, faults) if found else str(faults[0])


def check_damaged(kind: str, folder: Path, versions: Iterable[bytes], *, may_change: int) -> None:
    """Read every version of a file; at most `may_change` images may differ, all others are found or named as lost."""
    path, originals = folder / KINDS[kind].name, set(IMAGES)
    if kind == "rec with idx":
        (folder / "train.idx").write_text(IDX)
    for number, data in enumerate(versions):
        path.write_bytes(data)
        result = outcome(KINDS[kind].source(path))
        if isinstance(result, str):
            assert result.startswith(str(path)), number
            assert "\n" not in result, number
            continue
        found, faults = result
        assert len(set(found) - originals) <= may_change, number
        assert len(found) + sum(fault.num_lost for fault in faults) >= len(IMAGES), (number, len(found), faults)
        assert all("\n" not in str(fault) for fault in faults), number


def test_undamaged_files_are_read_without_faults(tmp_path: Path) -> None:
    for kind, about in KINDS.items():
        assert 36_000 < len(about.data) < 60_000
        (tmp_path / about.name).write_bytes(about.data)
        assert read_all(about.source(tmp_path / about.name)) == (IMAGES, []), kind


@pytest.mark.parametrize("kind", KINDS)
def test_file_cut_at_any_byte_names_what_is_lost(tmp_path: Path, kind: str) -> None:
    data = KINDS[kind].data
    edges = (
        [offset + delta for offset in RECORDS.offsets[::16] for delta in (-1, 0, 1, 7, 8, 9)] if "rec" in kind else []
    )
    cuts = {*range(0, len(data), 997), *edges, *range(len(data) - 24, len(data))}
    check_damaged(kind, tmp_path, (data[:cut] for cut in sorted(cuts) if 0 <= cut < len(data)), may_change=0)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_file_cut_at_a_thousand_bytes_names_what_is_lost(tmp_path: Path, kind: str) -> None:
    data = KINDS[kind].data
    check_damaged(kind, tmp_path, (data[:cut] for cut in range(0, len(data), 41)), may_change=0)


def flipped(data: bytes, count: int) -> Iterable[bytes]:
    """Versions of a file with one to three flipped bits, half of them in headers and tables."""
    draw = random.Random(0)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 3))):
            at = draw.randrange(len(data)) if draw.random() < 0.5 else draw.choice(HEADERS[data])
            changed[at] ^= 1 << draw.randrange(8)
        yield bytes(changed)


HEADERS = {about.data: list(range(len(about.data))) for about in KINDS.values()}
HEADERS[RECORDS.data] = [offset + delta for offset in RECORDS.offsets for delta in range(32)]
HEADERS[KINDS["zip"].data] = [*range(KINDS["zip"].data.index(b"PK\1\2"), len(KINDS["zip"].data))]
HEADERS[KINDS["bin"].data] = [at + delta for at in range(0, 36_000, 640) for delta in range(4)]


@pytest.mark.parametrize("kind", KINDS)
def test_file_with_flipped_bits_names_what_is_lost(tmp_path: Path, kind: str) -> None:
    check_damaged(kind, tmp_path, flipped(KINDS[kind].data, 60), may_change=3)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_file_with_flipped_bits_in_a_thousand_places_names_what_is_lost(tmp_path: Path, kind: str) -> None:
    check_damaged(kind, tmp_path, flipped(KINDS[kind].data, 250), may_change=3)  # 1,000 of all kinds
