"""The align stage: its detector's file, and the faces of a config's photographs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import ray

from rayface.alignment.aligned_source import AlignedSource
from rayface.alignment.detector import Detector
from rayface.config import load
from rayface.data.convert import ConvertSettings
from rayface.stages import alignment
from rayface.stages.alignment import align_sources
from tests.alignment.photographs import knows_the_face, photograph, save
from tests.conftest import ObjectStore


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
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # in threads: other processes have no such detector
    dataset = align_sources(config)
    assert (dataset.identities, dataset.about.image_size) == (("ann",), (64, 64))


def test_align_sources_with_a_detector_in_a_store_copies_it_where_the_task_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore
) -> None:
    save(tmp_path / "in" / "ann" / "x.png", photograph(1))
    object_store.put("net.onnx", b"net")
    uri = object_store.uri("net.onnx")
    opened: list[bytes] = []
    given: list[ConvertSettings] = []

    def yunet(path: str, min_score: float) -> Detector:
        opened.append(Path(path).read_bytes())
        return knows_the_face

    def on_another_node(sources: list[AlignedSource], *args: Any, **options: Any) -> list[AlignedSource]:
        monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "other"))
        given.append(args[1])
        return sources

    monkeypatch.setenv("RAYFACE_CACHE", str(tmp_path / "driver"))
    monkeypatch.setattr(alignment, "YuNet", yunet)
    monkeypatch.setattr(alignment, "convert", on_another_node)
    keys = {"source": tmp_path / "in", "out": tmp_path / "out", "detector": uri}
    keys |= {"min_images": 2, "limit": 7, "seed": 3, "quality": 81}
    (source,) = align_sources(load(overrides={f"align.{key}": str(value) for key, value in keys.items()}))
    shutil.rmtree(tmp_path / "driver")
    source.prepare("")
    assert opened == [b"net"]
    (settings,) = given
    assert (settings.min_images, settings.limit, settings.seed, source.settings.quality) == (2, 7, 3, 81)
