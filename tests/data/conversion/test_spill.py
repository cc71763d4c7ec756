"""Reading units into pieces: places in the final order, records, faults, and resuming."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from rayface.data.conversion.listing import Unit
from rayface.data.conversion.settings import ConvertSettings
from rayface.data.conversion.spill import Record, Spill, key_digest, places, read_records, record_size
from rayface.data.conversion.work_folder import WorkFolder, note_of, read_table
from rayface.data.shards.members import encode_sample
from rayface.data.shards.samples import Fault
from rayface.data.sources.base import SourceImage
from tests.data.conversion.work import images, listed, spilled, work_folder
from tests.data.sources.in_memory import InMemory


def test_places_shuffled_differ_for_all_numbers_and_look_random() -> None:
    numbers, labels = np.arange(100_000), np.zeros(100_000, np.int32)
    found = [places(numbers, labels, ConvertSettings(seed=seed)) for seed in range(3)]
    for place in found:
        assert len(np.unique(place)) == len(numbers)
        counts = np.histogram(place.astype(float), bins=100, range=(0, 2.0**64))[0]
        chi_square = float(((counts - 1000) ** 2 / 1000).sum())
        assert 55 < chi_square < 160  # 99 degrees of freedom: beyond these one time in 1e4
        rank = np.argsort(np.argsort(place))
        assert abs(np.corrcoef(numbers, rank)[0, 1]) < 0.02
        assert abs(np.corrcoef(rank[1:], rank[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(*(np.argsort(np.argsort(place)) for place in found[:2]))[0, 1]) < 0.02


def test_places_by_identity_are_by_label_then_number() -> None:
    settings = ConvertSettings(layout="by_identity", seed=1)
    numbers, labels = np.array([5, 2**33 - 1, 7]), np.array([2**31 - 1, 0, 0], np.int32)
    assert np.argsort(places(numbers, labels, settings)).tolist() == [2, 1, 0]


def records(work: WorkFolder, unit: int, piece: int) -> list[Record]:
    return list(read_records(Path(work.piece(unit, piece)).read_bytes()))


@pytest.mark.parametrize("piece_bytes", [1, 2000, 1 << 20])
def test_spill_writes_every_readable_image_once_into_sorted_pieces(tmp_path: Path, piece_bytes: int) -> None:
    work = work_folder(tmp_path)
    given = images(12)
    source = InMemory([given[:5], [*given[5:], ("bad", "id0", b""), ("torn", "id1", given[0][2][:-30])]])
    spilled(work, source, piece_bytes=piece_bytes)
    record = read_table(work.spilled(0))
    note = note_of(record)
    pieces = [records(work, 0, number) for number in range(len(note["pieces"]))]
    assert (len(pieces) == 1) == (piece_bytes == 1 << 20)
    assert all(piece == sorted(piece) for piece in pieces)
    found = [each for piece in pieces for each in piece]
    assert sorted((each.key.decode(), each.image) for each in found) == sorted((key, data) for key, _, data in given)
    assert record["place"].to_pylist() == [each.place for each in found]
    assert record["record_bytes"].to_pylist() == [record_size(each) for each in found]
    assert record["key_digest"].to_pylist() == [key_digest(each.key) for each in found]
    assert record["sample_bytes"].to_pylist() == [
        len(encode_sample(each.key.decode(), each.label, each.image)) for each in found
    ]
    assert [fault["member"] for fault in note["faults"]["named"]] == ["bad", "torn"]
    assert [key for key, _, _ in note["lost"]] == ["bad", "torn"]


def test_spill_of_a_finished_unit_reads_nothing_again(tmp_path: Path) -> None:
    work = work_folder(tmp_path)
    source = InMemory([[*images(3), ("bad", "id0", b"")]])
    (unit,) = spilled(work, source).units
    source.read_rows.clear()
    found = Spill(sources=[source], work=work, settings=ConvertSettings())([unit])
    assert (source.read_rows, found.num_images, found.num_lost) == ([], 3, 1)
    assert found.first is not None
    assert found.first.member == "bad"


def test_spill_of_a_unit_of_lost_images_writes_an_empty_piece(tmp_path: Path) -> None:
    work = work_folder(tmp_path)
    source = InMemory([[("bad", "id0", b"")]])
    (unit,) = listed(work, source).units
    found = Spill(sources=[source], work=work, settings=ConvertSettings())([unit])
    assert (found.num_images, records(work, 0, 0)) == (0, [])


class Photographs(InMemory):
    """Makes its images when they are read."""

    def read(self, part: int, images: pa.Table) -> Iterator[SourceImage | Fault]:
        for key in images["key"].to_pylist():
            self.read_rows.append((part, [key]))
            yield SourceImage(bytes(1 << 20), "p", key)


def test_spill_of_large_images_reads_few_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Photographs, "decodes_listed", True)
    work = work_folder(tmp_path)
    source = Photographs([[(f"k{n}", "ann", b"") for n in range(200)]])
    (unit,) = listed(work, source).units
    spill = Spill(sources=[source], work=work, settings=ConvertSettings(), piece_bytes=8 << 20)
    spilled, ahead = [], []

    def write(self: Spill, unit: Unit, number: int, records: list[Record]) -> pa.Table:
        spilled.extend(record.key for record in records)
        ahead.append(len(source.read_rows) - len(spilled))
        return pa.table({})

    monkeypatch.setattr(Spill, "_write_piece", write)
    spill([unit])
    assert len(spilled) == 200
    assert max(ahead) <= 13 * 8  # calls in flight, of 8 MB each


def test_spill_keeps_opencv_silent_while_it_reads_and_restores_its_level(monkeypatch) -> None:
    levels = []
    monkeypatch.setattr(Spill, "_read", lambda self, units: levels.append(cv2.utils.logging.getLogLevel()))
    before = cv2.utils.logging.getLogLevel()
    Spill(sources=[], work=None, settings=None)([])
    assert (levels, cv2.utils.logging.getLogLevel()) == ([cv2.utils.logging.LOG_LEVEL_SILENT], before)
