"""Dataset folders of the Hub: splits by the card or by names, as `datasets` lays them out."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from rayface.data.convert import convert
from rayface.data.dataset import Dataset
from rayface.data.sources import open_source
from rayface.storage import DataError

CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  splits:
  - name: train
    num_examples: 2
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: validation
    path: [data/held-*, extra/**/*.parquet]
- config_name: small
  data_files: small/*
---
# Faces
"""


def write(path: Path, first: int, count: int = 2) -> None:
    """Write a file with `count` images of the classes ann and bob, in turn, as `datasets` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + count)
    images = [
        {"bytes": simplejpeg.encode_jpeg(np.full((8, 8, 3), number, np.uint8)), "path": f"{number}.jpg"}
        for number in numbers
    ]
    features = {"image": {"_type": "Image"}, "label": {"names": ["ann", "bob"], "_type": "ClassLabel"}}
    table = pa.table(
        {
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array([number % 2 for number in numbers], pa.int64()),
        }
    )
    about = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/held-0", "extra/a/b", "small/x")
    for number, name in enumerate(names):
        write(tmp_path / "faces" / f"{name}.parquet", 10 * number)
    return tmp_path / "faces"


def keys_of(folder: Path, out: Path, **options: str) -> list[str]:
    dataset: Dataset = convert(open_source("hub", folder, options), out)
    assert dataset.identities == ("ann", "bob")
    return sorted(dataset.keys())


def test_hub_with_a_card_reads_the_files_of_the_split(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text(CARD)
    assert keys_of(folder, tmp_path / "train") == ["0", "1", "10", "11"]
    assert keys_of(folder, tmp_path / "held", split="validation") == ["20", "21", "30", "31"]
    assert keys_of(folder, tmp_path / "small", config="small") == ["40", "41"]
    with pytest.raises(DataError, match=r"convert.options.split: 'test': must be one of train, validation$"):
        keys_of(folder, tmp_path / "none", split="test")
    with pytest.raises(DataError, match=r"convert.options.config: 'big': must be one of default, small$"):
        keys_of(folder, tmp_path / "none", config="big")
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(DataError, match=r"README.md: its front matter is not YAML"):
        keys_of(folder, tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("train", ["0", "1", "10", "11"]), ("no_split", ["20", "21"]), ("last", ["40", "41"]), (None, ["40", "41"])],
)
def test_hub_with_several_configurations_reads_the_default_and_train_where_no_split_is_named(
    folder: Path, tmp_path: Path, name: str | None, wanted: list[str]
) -> None:
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- {config_name: train, data_files: [{split: train, path: ./data/train-*}]}\n"
        "- {config_name: no_split, data_files: [{path: data/held-*}]}\n"
        "- {config_name: last, data_files: small/*, default: true}\n---\n"
    )
    options = {} if name is None else {"config": name}
    assert keys_of(folder, tmp_path / "out", **options) == wanted


@pytest.mark.parametrize("card", [None, "---\nlicense: mit\n---\n"])
def test_hub_without_files_in_the_card_reads_splits_by_name(tmp_path: Path, card: str | None) -> None:
    for number, name in enumerate(("data/train-00000-of-00001", "test/part-0", "train/dev_x", "other")):
        write(tmp_path / "faces" / f"{name}.parquet", 10 * number)
    if card:
        (tmp_path / "faces" / "README.md").write_text(card)
    assert keys_of(tmp_path / "faces", tmp_path / "train") == ["0", "1"]
    assert keys_of(tmp_path / "faces", tmp_path / "test", split="test") == ["10", "11"]
    assert keys_of(tmp_path / "faces", tmp_path / "dev", split="validation") == ["20", "21"]


def test_hub_with_files_of_no_split_by_name_warns_with_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("data/evaluation-0", "other", "extra/x")):
        write(tmp_path / "faces" / f"{name}.parquet", 10 * number)
    assert keys_of(tmp_path / "faces", tmp_path / "out", split="test") == ["0", "1"]
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert message.endswith("no split by their names, and are left out: extra/x.parquet, other.parquet")


def test_hub_without_any_split_reads_all_files(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "faces" / f"{number}.parquet", 10 * number)
    assert keys_of(tmp_path / "faces", tmp_path / "out") == ["0", "1", "10", "11"]
