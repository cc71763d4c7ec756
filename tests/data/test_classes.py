"""Labels with holes are counted, and refused if almost all classes are empty; impossible numbers are refused."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from typer.testing import CliRunner

from rayface.cli.command_line import app
from rayface.config import Config, with_overrides
from rayface.data.check import check
from rayface.data.classes import described, num_with_images
from rayface.data.convert import convert
from rayface.data.dataset import open_dataset
from rayface.data.sources.webdataset import WebDatasetSource
from rayface.data.writer import write_dataset
from rayface.plan.planning import make_plan
from rayface.storage import DataError
from rayface.training.trainer import train

JPEG = simplejpeg.encode_jpeg(np.full((32, 32, 3), 90, np.uint8))


def bare(folder: Path, labels: list[int]) -> Path:
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, label in enumerate(labels):
            for name, data in ((f"{i:03d}.jpg", JPEG), (f"{i:03d}.cls", b"%d" % label)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def test_label_space_of_empty_classes_is_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    folder = bare(tmp_path / "set", [69_000_000 + i // 6 for i in range(60)])
    with pytest.raises(DataError) as caught:
        open_dataset(folder)
    message = str(caught.value)
    assert "60 images, 69,000,010 classes, 10 of them with images" in message
    assert f"rayface convert --from webdataset {folder} OUT" in message
    assert "\n" not in message
    report = check(folder, deep=True)
    assert (report.num_images, report.num_classes, report.num_classes_with_images) == (60, 69_000_010, 10)
    (fault,) = report.faults
    assert (fault.kind, fault.shard) == ("labels", str(folder))
    assert "10 of them with images" in fault.reason
    with pytest.raises(DataError, match="10 of them with images"):
        check(folder, write_manifest=True)
    assert [path.name for path in folder.iterdir()] == ["a.tar"]
    dataset = convert(WebDatasetSource(folder), tmp_path / "out")
    assert (dataset.num_classes, dataset.num_classes_with_images, dataset.num_images) == (10, 10, 60)


def test_manifest_without_names_of_empty_classes_is_refused(tmp_path: Path) -> None:
    folder = bare(tmp_path / "set", [0, 1, 1])
    check(folder, write_manifest=True)
    (folder / "identities.parquet").unlink(missing_ok=True)
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**manifest, "num_classes": 50_000}))
    with pytest.raises(DataError, match="3 images, 50,000 classes, 2 of them with images"):
        open_dataset(folder)


@pytest.mark.parametrize("labels", [[0, 9_999], [3, 9_999, 9_999], [i * 90 for i in range(200)]])
def test_label_space_with_few_empty_classes_is_accepted(tmp_path: Path, labels: list[int]) -> None:
    dataset = open_dataset(bare(tmp_path / "set", labels))
    assert dataset.num_classes == max(labels) + 1
    assert dataset.num_classes_with_images == len(set(labels))


def test_names_without_an_image_are_accepted(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(20_000)]
    write_dataset(tmp_path / "set", [("k", 7, JPEG)], name="set", identities=names, image_size=None)
    dataset = open_dataset(tmp_path / "set")
    assert (dataset.num_classes, dataset.num_classes_with_images) == (20_000, 1)
    assert check(tmp_path / "set").ok


@pytest.mark.parametrize("num_classes", [8, 60, 61, 10**9])
def test_num_with_images_of_a_large_label_space_takes_little_memory(num_classes: int) -> None:
    assert num_with_images(np.array([7, 1, 7, 3] * 4, np.int32), num_classes) == 3


def test_every_verb_with_empty_classes_counts_classes_with_images(
    tmp_path: Path, messages: Callable[[], list[str]]
) -> None:
    folder = bare(tmp_path / "set", [1, 4, 4, 6])
    assert described(4, 7, 3) == "4 images, 7 classes, 3 of them with images"
    assert described(4, 3, 3) == "4 images, 3 classes"
    done = CliRunner().invoke(app, ["check", str(folder), "--json"])
    told = json.loads(done.stdout)
    assert (told["images"], told["label_space"], told["identities"]) == (4, 7, 3)
    config = with_overrides(Config(), {"data.train": str(folder), "train.batch_size": 64, "train.device": "cpu"})
    small = with_overrides(config, {"train.batch_size": 4})
    assert make_plan(small).table()["data"] == "7 classes (3 of them with images), 4 images, counted in set"
    with pytest.raises(ValueError, match="batch_size"):  # found after the data is opened, before Ray is started
        train(config)
    assert messages() == ["data set: 4 images, 7 classes, 3 of them with images"]


# -- numbers of index and manifest that memory is taken for


def edit(folder: Path, name: str, change: Callable[[np.ndarray], Any]) -> None:
    table = pq.read_table(folder / "index.parquet")
    column = table.column_names.index(name)
    values = pa.array(change(table[name].to_numpy().copy()), table.schema.field(name).type)
    pq.write_table(table.set_column(column, table.schema.field(name), values), folder / "index.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [(f"k{i}", i % 3, JPEG) for i in range(9)]
    write_dataset(tmp_path / "set", samples, name="set", identities="abc", image_size=None, shard_size=9000)
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shard", 2**31 - 1),
        ("shard", -1),
        ("num_bytes", 2**31 - 1),
        ("num_bytes", 0),
        ("num_bytes", -512),
        ("offset", -512),
        ("offset", 2**62),
        ("offset", 2**63 - 1),
    ],
)
def test_index_with_an_impossible_number_is_refused_before_memory_is_taken(folder: Path, name: str, value: int) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values[4] = value
        return values

    edit(folder, name, change)
    with pytest.raises(DataError, match=r"index\.parquet.*rayface check --write-manifest") as caught:
        open_dataset(folder, max_corrupt_fraction=1)
    assert "\n" not in str(caught.value)
    check(folder, write_manifest=True)
    assert open_dataset(folder).num_images == 9


def test_index_with_a_missing_number_or_row_is_refused(folder: Path) -> None:
    edit(folder, "shard", lambda values: [None, *values[1:].tolist()])
    with pytest.raises(DataError, match=r"index\.parquet"):
        open_dataset(folder)
    table = pq.read_table(folder / "index.parquet")
    pq.write_table(pa.concat_tables([table, table]), folder / "index.parquet")
    with pytest.raises(DataError, match="sample counts differ"):
        open_dataset(folder)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("num_classes", [2**31 - 1, 2**31 + 1, 10**12, 10**40])
def test_manifest_with_an_impossible_number_of_classes_is_refused(folder: Path, names: bool, num_classes: int) -> None:
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**manifest, "num_classes": num_classes}))
    if not names:
        (folder / "identities.parquet").unlink()
    with pytest.raises(DataError) as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)


def test_check_of_an_index_with_an_impossible_number_names_the_sample(folder: Path) -> None:
    edit(folder, "shard", lambda values: np.where(np.arange(9) == 4, 2**31 - 1, values))
    assert {fault.member for fault in check(folder).faults} == {"k4"}
