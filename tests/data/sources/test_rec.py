"""RecordIO files: both kinds of headers, tables of identities, records in several parts, missing .idx, corruption."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from rayface.data.convert import convert
from rayface.data.dataset import Dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Fault, Sample
from rayface.data.sources import rec
from rayface.data.sources.rec import RecSource
from rayface.storage import DataError
from tests.data.sources.rec_files import MAGIC, Written, image_content, insightface, records, save


def jpeg(seed: int, comment: bytes = b"") -> bytes:
    """A JPEG of 16 x 16 pixels; the comment begins at byte 24 of it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    data = simplejpeg.encode_jpeg(coarse)
    assert data[2:6] == b"\xff\xe0\x00\x10"
    marker = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment if comment else b""
    return data[:20] + marker + data[20:]


IMAGES = [(label, jpeg(10 * label + n)) for label, count in ((0, 2), (3, 3), (7, 1)) for n in range(count)]


def read_all(source: RecSource) -> tuple[dict[str, tuple[int, bytes]], list[Fault]]:
    """All images by key, and all faults of listing and reading."""
    source.prepare("")
    found, faults = {}, []
    for part in range(len(source.parts())):
        listing = source.list_images(part)
        faults += listing.faults.faults() if listing.faults else []
        rows = zip(listing.images["key"].to_pylist(), listing.images["identity"].to_pylist(), strict=True)
        for (key, label), image in zip(rows, source.read(part, listing.images), strict=True):
            if isinstance(image, Fault):
                faults.append(image)
            else:
                found[key] = (label, image.data)
    return found, faults


def samples(dataset: Dataset) -> dict[str, tuple[int, bytes]]:
    read = read_samples(dataset.shard_paths(), dataset.index)
    return {sample.key: (sample.label, sample.jpeg) for sample in read if isinstance(sample, Sample)}


WANTED = {f"{number:09d}": image for number, image in enumerate(IMAGES, 1)}


@pytest.mark.parametrize("idx", [True, False])
def test_rec_of_insightface_is_converted_without_its_tables_of_identities(tmp_path: Path, idx: bool) -> None:
    src = save(tmp_path / "faces", insightface(IMAGES), idx=idx)
    dataset = convert(RecSource(src), tmp_path / "out")
    new = {0: 0, 3: 1, 7: 2}
    assert samples(dataset) == {key: (new[label], image) for key, (label, image) in WANTED.items()}
    assert (dataset.faults, dataset.identities, dataset.about.image_size) == ((), ("0", "3", "7"), (16, 16))
    assert dataset.about.source == "rec faces"


def test_rec_with_arrays_of_labels_takes_the_first_as_the_identity(tmp_path: Path) -> None:
    contents = [image_content([label, 0.5, 1e9], number, image) for number, (label, image) in enumerate(IMAGES, 1)]
    found, faults = read_all(RecSource(save(tmp_path, records(contents)) / "train.rec"))
    assert (found, faults) == (WANTED, [])


def test_rec_record_without_an_image_is_named_and_no_table_of_identities(tmp_path: Path) -> None:
    contents = [image_content(0, 1, jpeg(1)), image_content(0, 2, b""), image_content(0, 3, jpeg(3))]
    dataset = convert(RecSource(save(tmp_path / "faces", records(contents))), tmp_path / "out")
    assert dataset.keys() == ["000000001", "000000003"]
    assert [(fault.member, fault.reason, fault.num_lost) for fault in dataset.faults] == [("record 2", "no bytes", 1)]


@pytest.mark.parametrize("pad", range(4))
def test_rec_with_the_magic_number_in_an_image_joins_the_parts(tmp_path: Path, pad: int) -> None:
    magic = struct.pack("<I", MAGIC)
    # The comment begins at byte 24 of the image, which is byte 48 of the record.
    comments = (bytes(pad) + magic + b"ab" + magic, bytes(pad) + 3 * magic, bytes(64 + pad) + magic)
    inside = [jpeg(number, comment) for number, comment in enumerate(comments)]
    written = insightface([*enumerate(inside), (5, jpeg(4))])
    kinds = {written.data[offset + 7] >> 5 for offset in written.offsets}
    assert kinds == ({0, 1} if pad in (0, 2) else {0})
    found, faults = read_all(RecSource(save(tmp_path, written)))
    assert faults == []
    assert [image for _, image in found.values()] == [*inside, jpeg(4)]


def test_rec_header_that_is_cut_by_the_magic_number_is_read(tmp_path: Path) -> None:
    # An id of which the lower half is the magic number: bytes 8 to 12 of the record.
    contents = [image_content(4, MAGIC, jpeg(1)), image_content(5, 2, jpeg(2))]
    found, faults = read_all(RecSource(save(tmp_path, records(contents))))
    assert (found, faults) == ({f"{MAGIC:09d}": (4, jpeg(1)), "000000002": (5, jpeg(2))}, [])


def test_rec_numbers_of_record_0_beyond_float32_are_ignored(tmp_path: Path) -> None:
    contents = [image_content([42_474_559.0, 44_533_465.0], 0, b"")]
    contents += [image_content(label, number, image) for number, (label, image) in enumerate(IMAGES, 1)]
    found, faults = read_all(RecSource(save(tmp_path, records(contents), idx=False)))
    assert (found, faults) == (WANTED, [])


@pytest.mark.parametrize("part_bytes", [4, 100, 1000])
def test_rec_in_parts_of_any_size_gives_every_record_once(
    tmp_path: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rec, "_PART_BYTES", part_bytes)
    found, faults = read_all(RecSource(save(tmp_path, insightface(IMAGES))))
    assert (found, faults) == (WANTED, [])
    assert list(found) == sorted(found)


def test_rec_corrupt_headers_at_the_edges_of_parts_lose_one_record_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = insightface(IMAGES)
    for number in range(1, 1 + len(IMAGES)):
        data = bytearray(written.data)
        data[written.offsets[number]] ^= 255
        folder = save(tmp_path / str(number), Written(bytes(data), written.offsets))
        for part_bytes in (written.offsets[number], 512, 1 << 20):
            monkeypatch.setattr(rec, "_PART_BYTES", part_bytes)
            found, faults = read_all(RecSource(folder))
            assert sorted({*WANTED} - {*found}) == [f"{number:09d}"]
            assert [(fault.kind, fault.offset, fault.num_lost) for fault in faults] == [
                ("header", written.offsets[number], 1)
            ]


def test_rec_size_that_leads_to_another_record_names_the_records_inside(tmp_path: Path) -> None:
    written = records([image_content(n, n, jpeg(1)) for n in range(8)])  # all of one size
    size = written.offsets[1]
    data = bytearray(written.data)
    data[4:8] = struct.pack("<I", 3 * size - 8)
    found, faults = read_all(RecSource(save(tmp_path, Written(bytes(data), written.offsets))))
    assert sorted(found) == [f"{n:09d}" for n in range(3, 8)]
    assert [(fault.num_lost, fault.reason) for fault in faults] == [
        (3, "corrupt size: 2 other records begin inside this one")
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (image_content(0.5, 1, jpeg(1)), "label 0.5 is not an integer"),
        (image_content(-1, 1, jpeg(1)), "label -1 is not"),
        (image_content(float("nan"), 1, jpeg(1)), "label nan is not"),
        (image_content(3e9, 1, jpeg(1)), "label 3e.09 is not"),
        (b"short", "record of 5 bytes"),
        (struct.pack("<IfQQ", 2**30, 0, 1, 0), "1073741824 labels in a record of 24 bytes"),
    ],
)
def test_rec_invalid_header_of_an_image_is_a_fault(tmp_path: Path, content: bytes, reason: str) -> None:
    good = [image_content(label, number, image) for number, (label, image) in enumerate(IMAGES, 1)]
    found, faults = read_all(RecSource(save(tmp_path, records([*good, content]))))
    assert found == WANTED
    assert len(faults) == 1
    assert reason.replace(".09", "+09") in str(faults[0])


def test_rec_names_of_identities_come_from_its_lst(tmp_path: Path, messages: Callable[[], list[str]]) -> None:
    src = save(tmp_path / "a", insightface(IMAGES))
    lines = [f"1\t/data/ms1m/p{label}/{n}.jpg\t{label}\n" for n, (label, _) in enumerate(IMAGES)]
    (src / "train.lst").write_text("".join(lines))
    assert convert(RecSource(src), tmp_path / "out").identities == ("p0", "p3", "p7")
    lines = [f"{n}\t{label}.000000\tp{label}/{n}.jpg\n" for n, (label, _) in enumerate(IMAGES)]
    (src / "train.lst").write_text("".join(lines))
    assert convert(RecSource(src / "train.rec"), tmp_path / "out2").identities == ("p0", "p3", "p7")
    assert messages() == []
    (src / "train.lst").write_text("1\tall/0.jpg\t0\n1\tall/1.jpg\t3\n")
    assert convert(RecSource(src), tmp_path / "out3").identities == ("0", "3", "7")
    rule = "it must be of the only .rec, with a folder of its own for each label"
    assert messages() == [f"{src}/train.lst: gives no names to the identities: {rule}"]


def test_rec_of_several_files_takes_no_names_from_one_lst(tmp_path: Path, messages: Callable[[], list[str]]) -> None:
    src = save(tmp_path / "a", insightface(IMAGES))
    (src / "train.rec").rename(src / "train_2.rec")
    save(src, insightface(IMAGES))
    (src / "train.lst").write_text("".join(f"1\tp{label}/0.jpg\t{label}\n" for label, _ in IMAGES))
    assert convert(RecSource(src), tmp_path / "out").identities == ("0", "3", "7")
    assert "train.lst: gives no names" in messages()[0]


def test_rec_index_that_is_read_in_blocks_counts_every_missing_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = insightface(IMAGES)
    src = save(tmp_path, written)
    (src / "train.rec").write_bytes(written.data[: written.offsets[4]])
    for block in (7, 16, 1 << 20):
        monkeypatch.setattr(rec, "_TEXT_BYTES", block)
        (fault,) = rec._missing_by_idx(str(src / "train.rec"), written.offsets[4])
        assert fault.num_lost == len(written.offsets) - 4


def test_rec_without_records_or_files_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder or \.rec file"):
        read_all(RecSource(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no \.rec file in this folder"):
        read_all(RecSource(tmp_path))
    (tmp_path / "train.rec").write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        read_all(RecSource(tmp_path))
    (tmp_path / "train.rec").write_bytes(b"<!DOCTYPE html>" * 100)
    with pytest.raises(DataError, match=r"no images to convert: rec needs .* no record here, 1500 bytes skipped"):
        convert(RecSource(tmp_path), tmp_path / "out")


def test_rec_cut_between_two_records_is_noticed_by_idx_or_record_0(tmp_path: Path) -> None:
    written = insightface(IMAGES)
    for idx in (True, False):
        src = save(tmp_path / str(idx), written, idx=idx)
        for records_left, lost in ((4, 6 if idx else 3), (1, 9 if idx else 6)):
            (src / "train.rec").write_bytes(written.data[: written.offsets[records_left]])
            found, faults = read_all(RecSource(src))
            assert len(found) == records_left - 1
            assert [(fault.kind, fault.num_lost) for fault in faults] == [("truncated", lost)]
