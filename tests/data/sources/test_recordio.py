"""RecordIO's frames: records and gaps of any range of bytes."""

import struct

import pytest

from rayface.data.sources.recordio import (
    MAGIC,
    Gap,
    Record,
    RecordError,
    image_record,
    iter_records,
    next_record,
    read_record,
)
from tests.data.sources.rec_files import records

CONTENTS = [b"", b"abc", b"x" * 40 + MAGIC + b"y" * 5, MAGIC * 3, b"z" * 50]
WRITTEN = records(CONTENTS)
DATA, SIZE = WRITTEN.data, len(WRITTEN.data)


def fetch(offset: int, count: int) -> bytes:
    return DATA[offset : offset + count]


def test_iter_records_of_a_file_gives_positions_and_contents() -> None:
    found = list(iter_records(fetch, 0, SIZE, SIZE))
    assert all(isinstance(record, Record) for record in found)
    assert [record.offset for record in found] == WRITTEN.offsets
    assert [record.end for record in found] == [*WRITTEN.offsets[1:], SIZE]
    assert [read_record(fetch, record.offset, record.end) for record in found] == CONTENTS
    heads = [record.head for record in found if isinstance(record, Record)]
    assert [head[:20] for head in heads] == [content[:20] for content in CONTENTS]


@pytest.mark.parametrize("cut", range(0, SIZE, 3))
def test_iter_records_of_two_ranges_gives_each_record_once(cut: int) -> None:
    parts = [*iter_records(fetch, 0, cut, SIZE), *iter_records(fetch, cut, SIZE, SIZE)]
    assert [part.offset for part in parts] == WRITTEN.offsets


def test_iter_records_behind_a_corrupt_header_gives_a_gap_and_the_next_record() -> None:
    start, stop = WRITTEN.offsets[2:4]
    data = DATA[:start] + b"?" + DATA[start + 1 :]
    found = list(iter_records(lambda at, count: data[at : at + count], 0, SIZE, SIZE))
    assert [type(each) for each in found] == [Record, Record, Gap, Record, Record]
    gap = found[2]
    assert isinstance(gap, Gap)
    assert (gap.offset, gap.end, gap.kind) == (start, stop, "header")
    assert "no magic number" in gap.reason


def test_next_record_skips_middle_parts_and_magic_numbers_off_the_grid() -> None:
    assert next_record(fetch, WRITTEN.offsets[2] + 4, SIZE) == WRITTEN.offsets[3]
    data = b"a" + MAGIC + bytes(7) + MAGIC + bytes(4)
    assert next_record(lambda at, count: data[at : at + count], 0, len(data)) == 12
    assert next_record(fetch, WRITTEN.offsets[-1] + 1, SIZE) == SIZE


def test_image_record_of_one_label_or_several_gives_the_first_and_where_the_image_starts() -> None:
    one = struct.pack("<IfQQ", 0, 5.0, 9, 0)
    assert image_record(one + b"image", 29) == (5.0, 9, 24, 0)
    several = struct.pack("<IfQQ2f", 2, 0.0, 9, 0, 7.0, 1.0)
    assert image_record(several[:28], 37) == (7.0, 9, 32, 2)
    with pytest.raises(RecordError, match="2 labels in a record of 30 bytes"):
        image_record(several[:28], 30)
