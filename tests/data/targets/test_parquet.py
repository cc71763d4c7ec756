"""Datasets written as parquet files for Hugging Face's `datasets`."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayface.data.targets import parquet, target_of
from tests.data.targets.small_set import SAMPLES, dataset_of


def test_parquet_target_is_what_datasets_loads(tmp_path: Path) -> None:
    target_of("parquet")(dataset_of(tmp_path / "set"), str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == ["train-00000-of-00001.parquet"]
    table = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"names": ["ann", "bob", "cy"], "_type": "ClassLabel"},
    }
    images = table["image"].to_pylist()
    assert [image["path"] for image in images] == ["x/0.jpg", "x_0.jpg", "y.png", "z.jpg", "w.jpg"]
    assert [image["bytes"] for image in images] == [data for *_, data in SAMPLES]
    assert table["label"].to_pylist() == [0, 0, 2, 1, 2]


def test_parquet_target_of_several_files_and_row_groups_has_every_image_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_FILE", 4)
    monkeypatch.setattr(parquet, "_GROUP", 2)
    written = target_of("parquet")(dataset_of(tmp_path / "set"), str(tmp_path / "out"))
    assert (written.num_images, written.num_files) == (5, 2)
    paths = [tmp_path / "out" / f"train-0000{number}-of-00002.parquet" for number in range(2)]
    assert [pq.ParquetFile(path).num_row_groups for path in paths] == [2, 1]
    tables = [pq.read_table(path) for path in paths]
    assert [label for table in tables for label in table["label"].to_pylist()] == [0, 0, 2, 1, 2]
    found = [image["bytes"] for table in tables for image in table["image"].to_pylist()]
    assert found == [data for *_, data in SAMPLES]
