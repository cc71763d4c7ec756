"""The align stage: its detector's file, and the faces of a config's photographs."""

from pathlib import Path

import pytest

from rayface.config import load
from rayface.stages import alignment
from rayface.stages.alignment import align_sources
from tests.alignment.photographs import knows_the_face, photograph, save


def test_align_sources_with_a_detector_writes_faces_and_without_its_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in" / "ann" / "x.png", photograph(1))
    keys = {"source": tmp_path / "in", "out": tmp_path / "out", "detector": tmp_path / "net.onnx", "image_size": 64}
    config = load(overrides={f"align.{key}": str(value) for key, value in keys.items()})
    with pytest.raises(ValueError, match=r"^align.detector: .*net.onnx: no such file: download YuNet"):
        align_sources(config)
    (tmp_path / "net.onnx").write_bytes(b"net")
    monkeypatch.setattr(alignment, "YuNet", lambda path, min_score: knows_the_face)
    dataset = align_sources(config)
    assert (dataset.identities, dataset.about.image_size) == (("ann",), (64, 64))
