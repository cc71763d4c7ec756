"""Datasets written as parquet files for Hugging Face's `datasets`."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq

from rayface.data.targets import target_of
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
