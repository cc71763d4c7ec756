"""Groups of images from tables."""

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from rayface.data.dataset import Dataset, open_dataset
from rayface.data.writer import write_dataset
from rayface.evaluation.groups import load_groups
from rayface.storage import DataError


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Six images of three identities."""
    jpeg = simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    samples = [(f"k{i}", i // 2, jpeg) for i in range(6)]
    write_dataset(tmp_path / "set", samples, name="set", identities=["Ann", "Bob", "Eve"], image_size=(32, 32))
    return open_dataset(tmp_path / "set")


def test_load_groups_of_identities_leaves_unknown_ones_without_a_group(dataset: Dataset, tmp_path: Path) -> None:
    columns = {"identity": ["Bob", "Ann", "Zoe"], "race": ["x", None, "y"], "age": [20, 30, 40]}
    pq.write_table(pa.table(columns), tmp_path / "groups.parquet")
    found = load_groups(dataset, ["race", "age"], str(tmp_path / "groups.parquet"))
    assert found["race"].tolist() == [None, None, "x", "x", None, None]
    assert found["age"].tolist() == ["30", "30", "20", "20", None, None]


def test_load_groups_of_the_datasets_own_identities_are_found(dataset: Dataset) -> None:
    path = Path(dataset.roots[0]) / "identities.parquet"
    pq.write_table(pq.read_table(path).append_column("race", pa.array(["x", "y", "x"])), path)
    assert load_groups(dataset, ["race"], None)["race"].tolist() == ["x", "x", "y", "y", "x", "x"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,race\n0,x\n0,x\n1,x\n1,y\n", r"label 1: has two rows with different groups: must have one$"),
        ("key,race,race\nk0,x,y\n", r"has the column race twice$"),
    ],
)
def test_load_groups_that_contradict_are_refused(dataset: Dataset, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        load_groups(dataset, ["race"], str(tmp_path / "groups.csv"))


@pytest.mark.parametrize("by", ["key", "identity"])
def test_load_groups_of_a_csv_with_numbers_reads_them_as_text(tmp_path: Path, by: str) -> None:
    jpeg = simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    names = ["0000045", "0000046", "45"]
    samples = [(name, label, jpeg) for label, name in enumerate(names)]
    write_dataset(tmp_path / "set", samples, name="set", identities=names, image_size=(32, 32))
    (tmp_path / "groups.csv").write_text(f"{by},age,left\n0000046,02,1.50\n0000045,01,\n")
    found = load_groups(open_dataset(tmp_path / "set"), ["age", "left"], str(tmp_path / "groups.csv"))
    assert found["age"].tolist() == ["01", "02", None]
    assert found["left"].tolist() == [None, "1.50", None]


def test_load_groups_of_labels_out_of_range_are_in_no_class(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("label,race\n0,x\n-2,y\n-1,y\n3,y\n1,z\n")
    found = load_groups(dataset, ["race", "label"], str(tmp_path / "groups.csv"))
    assert found["race"].tolist() == ["x", "x", "z", "z", None, None]
    assert found["label"].tolist() == ["0", "0", "1", "1", None, None]


def test_load_groups_of_an_identity_in_another_unicode_form_are_found(tmp_path: Path) -> None:
    jpeg = simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    write_dataset(tmp_path / "set", [("k", 0, jpeg)], name="set", identities=["Zoë"], image_size=(32, 32))
    (tmp_path / "groups.csv").write_text("identity,race\n" + unicodedata.normalize("NFD", "Zoë") + ",x\n")
    assert load_groups(open_dataset(tmp_path / "set"), ["race"], str(tmp_path / "groups.csv"))["race"].tolist() == ["x"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,age\n0,1\n", "has no column race; it has label, age"),
        ("name,race\nAnn,x\n", "has no column one of key, identity, label"),
        ("key,race\nk9,x\n", "column key: names none of the images"),
    ],
)
def test_load_groups_of_a_table_that_does_not_fit_is_refused(
    dataset: Dataset, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_groups(dataset, ["race"], str(tmp_path / "groups.csv"))
