"""Converting the aligned faces of photographs: pixels, measures, and photographs without a face."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from rayface.alignment.aligned_source import AlignedSettings, AlignedSource
from rayface.alignment.detector import Face
from rayface.data.check import check
from rayface.data.convert import ConvertSettings, convert
from rayface.data.decode import decode_image
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources.bin import BinSource
from rayface.data.sources.folder import FolderSource
from tests.alignment.photographs import SCALE, face, knows_the_face, photograph, save
from tests.data.sources.bin_files import bin_file


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Two identities with three photographs each, one of them black and one torn."""
    for n in range(6):
        save(tmp_path / "people" / "ab"[n // 3] / f"{n}.png", photograph(n))
    save(tmp_path / "people" / "a" / "1.png", np.zeros((50, 40, 3), np.uint8))
    (tmp_path / "people" / "b" / "5.png").write_bytes(b"\x89PNG torn")
    return tmp_path / "people"


def aligned(people: Path, **settings: float) -> AlignedSource:
    return AlignedSource(FolderSource(people), AlignedSettings(**settings), lambda: knows_the_face)  # type: ignore[arg-type]


def test_align_writes_the_largest_face_of_every_photograph(people: Path, tmp_path: Path) -> None:
    dataset = convert(aligned(people), tmp_path / "out", ConvertSettings(layout="by_identity"))
    assert (dataset.identities, dataset.about.image_size) == (("a", "b"), (112, 112))
    assert dataset.keys() == ["a_0", "a_2", "b_3", "b_4"]
    for sample, seed in zip(read_samples(dataset.shard_paths(), dataset.index), (0, 2, 3, 4), strict=True):
        assert isinstance(sample, Sample)
        pixels = decode_image(sample.jpeg)
        assert pixels.shape == (112, 112, 3)
        wanted = face(seed)[..., ::-1].astype(int)
        assert np.abs(pixels[8:-8, 8:-8] - wanted[8:-8, 8:-8]).mean() < 3
    assert dataset.about.source == "faces of folder people"
    assert check(tmp_path / "out", deep=True).ok


def test_align_of_a_test_set_writes_its_pairs(tmp_path: Path) -> None:
    images = [cv2.imencode(".png", photograph(n))[1].tobytes() for n in range(4)]
    (tmp_path / "lfw.bin").write_bytes(bin_file(images, [True, False]))
    source = AlignedSource(BinSource(tmp_path / "lfw.bin"), AlignedSettings(), lambda: knows_the_face)
    dataset = convert(source, tmp_path / "out")
    assert sorted(dataset.keys()) == ["000000", "000001", "000002", "000003"]
    rows = (tmp_path / "out" / "pairs.csv").read_text().splitlines()[1:]
    assert rows == ["000000.jpg,000001.jpg,1,0", "000002.jpg,000003.jpg,0,1"]


def test_align_lists_photographs_without_a_face_and_measures_of_the_others(people: Path, tmp_path: Path) -> None:
    dataset = convert(aligned(people), tmp_path / "out")
    assert sorted((fault.kind, fault.member) for fault in dataset.faults) == [
        ("no face", "a/1.png"),
        ("unreadable", "b/5.png"),
    ]
    lost = pq.read_table(tmp_path / "out" / "lost.parquet").to_pylist()
    assert [(row["key"], row["kind"]) for row in lost] == [("a_1", "no face"), ("b_5", "unreadable")]
    measures = pq.read_table(tmp_path / "out" / "measures.parquet")
    assert measures.column_names == ["key", "label", "quality", "score", "eye_distance", "num_faces"]
    assert measures["key"].to_pylist() == dataset.keys()
    for row in measures.to_pylist():
        assert (row["score"], row["num_faces"]) == (pytest.approx(0.9), 2)
        assert row["eye_distance"] == pytest.approx(35.24 * SCALE, abs=0.1)
        assert row["quality"] == pytest.approx(0.9)


def test_align_to_a_larger_side_has_a_lower_quality(people: Path, tmp_path: Path) -> None:
    dataset = convert(aligned(people, side=224), tmp_path / "out")
    assert dataset.about.image_size == (224, 224)
    quality = pq.read_table(tmp_path / "out" / "measures.parquet")["quality"].to_pylist()
    assert quality == pytest.approx([0.9 * SCALE / 2] * 4)


def test_align_with_landmarks_in_one_point_is_no_face(people: Path, tmp_path: Path) -> None:
    def one_point(image: np.ndarray) -> list[Face]:
        size = (9.0, 9.0) if image.any() else (1.0, 1.0)
        landmarks = np.zeros((5, 2)) if image[0, 0, 0] % 2 else np.random.default_rng(0).random((5, 2)) * 50
        return [Face(size=size, landmarks=landmarks, score=1.0)]

    source = AlignedSource(FolderSource(people), AlignedSettings(), lambda: one_point)
    dataset = convert(source, tmp_path / "out")
    faults = [fault for fault in dataset.faults if fault.kind == "no face"]
    assert 0 < len(faults) < 5
    assert all("must be different points" in fault.reason for fault in faults)
