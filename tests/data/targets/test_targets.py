"""Datasets written as folders, parquet files and .bin: what goes in comes out."""

import csv
import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from rayface.cli import _outcome
from rayface.data.convert import convert
from rayface.data.dataset import Dataset, open_dataset
from rayface.data.shards.random_access import read_samples
from rayface.data.shards.samples import Sample
from rayface.data.sources import open_source
from rayface.data.targets import TARGETS, target_of
from rayface.data.targets.folder import file_name
from rayface.data.writer import write_dataset
from rayface.hub_card import front_matter
from rayface.storage import DataError


def jpeg(seed: int) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


PNG = cv2.imencode(".png", np.full((16, 16, 3), 9, np.uint8))[1].tobytes()
SAMPLES = [("x/0", 0, jpeg(0)), ("x_0", 0, jpeg(1)), ("y", 2, PNG), ("z", 1, jpeg(2)), ("w", 2, jpeg(3))]


def dataset_of(folder: Path, identities: list[str] | None = None) -> Dataset:
    names = ["ann", "bob", "cy"] if identities is None else identities
    return write_dataset(folder, SAMPLES, name="set", identities=names, image_size=(16, 16), shard_size=6000)


def by_name(dataset: Dataset) -> list[tuple[str, bytes]]:
    assert dataset.identities is not None
    found = read_samples(dataset.shard_paths(), dataset.index)
    return sorted((dataset.identities[s.label], s.jpeg) for s in found if isinstance(s, Sample))


@pytest.mark.parametrize(("kind", "options"), [("folder", {"image_size": None}), ("hub", {}), ("parquet", {})])
def test_target_that_is_converted_back_gives_the_same_images_of_the_same_names(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    dataset = dataset_of(tmp_path / "set")
    written = target_of(kind)(dataset, str(tmp_path / "written"))
    assert (written.num_images, written.faults) == (5, ())
    again = convert(open_source(kind, tmp_path / "written", options), tmp_path / "again")
    assert by_name(again) == by_name(dataset)
    assert len(by_name(dataset)) == 5
    with pytest.raises(DataError, match="is not empty"):
        target_of(kind)(dataset, str(tmp_path / "written"))


def test_folder_target_names_files_by_key_and_keeps_equal_names_apart(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "set", ["../up", "..:up", "a" * 300])
    target_of("folder")(dataset, str(tmp_path / "out"))
    found = sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*") if path.is_file()
    )
    assert found == ["_up-2/z.jpg", "_up/x_0-2.jpg", "_up/x_0.jpg", f"{'a' * 200}/w.jpg", f"{'a' * 200}/y.png"]
    assert sorted(os.listdir(tmp_path)) == ["out", "set"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("..", "_"), (".hidden", "hidden"), ("a/b\\c", "a_b_c"), ("", "_"), ("a\n", "a_"), ("é" * 150, "é" * 100)],
)
def test_file_name_of_any_text_stays_in_its_folder(name: str, wanted: str) -> None:
    assert file_name(name) == wanted


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


def test_bin_target_is_the_pickle_that_insightface_reads(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "set")
    with pytest.raises(DataError, match=r"pairs\.csv: no such file"):
        target_of("bin")(dataset, str(tmp_path / "x.bin"))
    rows = [("x/0.jpg", "x_0.jpg", 1, 1), ("y.png", "z.jpg", 0, 0), ("w.jpg", "y.png", 1, 0)]
    with (tmp_path / "set" / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path_a", "path_b", "is_same", "fold"), *rows])
    written = target_of("bin")(dataset, str(tmp_path / "x.bin"))
    images, is_same = pickle.loads((tmp_path / "x.bin").read_bytes(), encoding="bytes")
    of = {key: data for key, _, data in SAMPLES}
    assert images == [of[key] for key in ("y", "z", "w", "y", "x/0", "x_0")]  # by fold
    assert is_same == [False, True, True]
    assert (written.num_images, written.num_files) == (6, 1)
    with pytest.raises(DataError, match=r"x\.bin: exists"):
        target_of("bin")(dataset, str(tmp_path / "x.bin"))
    for text, message in (("path_a\nx", "must be a csv"), ("path_a,path_b,is_same,fold\nq.jpg,y.jpg,1,0", "names q,")):
        (tmp_path / "set" / "pairs.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            target_of("bin")(dataset, str(tmp_path / "y.bin"))


def test_convert_to_takes_a_dataset_or_a_source_of_any_format(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "set")
    assert _outcome(["convert", str(tmp_path / "set"), str(tmp_path / "a"), "--to", "folder"]) == (0, "")
    steps = ["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--from", "folder", "--to", "parquet"]
    assert _outcome([*steps, "convert.options.image_size=null"]) == (0, "")
    assert by_name(convert(open_source("parquet", tmp_path / "b"), tmp_path / "c")) == by_name(dataset)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "set"]
    assert open_dataset(tmp_path / "c").num_images == 5


def test_convert_to_an_unknown_format_or_from_none_is_one_line(tmp_path: Path) -> None:
    code, text = _outcome(["convert", str(tmp_path), str(tmp_path / "out"), "--to", "tape"])
    assert (code, text) == (
        2,
        "convert.to: 'tape': must be one of bin, folder, hub, parquet, or registered by a plugin",
    )
    code, text = _outcome(["convert", str(tmp_path), str(tmp_path / "out")])
    assert code == 2
    assert text.startswith("convert.kind: is not set: Format of the source")
    assert sorted(TARGETS) == ["bin", "folder", "hub", "parquet"]


def test_hub_target_names_its_split_and_counts_in_the_card(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "set")
    target_of("hub")(dataset, str(tmp_path / "hub"))
    names = sorted(str(path.relative_to(tmp_path / "hub")) for path in (tmp_path / "hub").rglob("*.*"))
    assert names == ["README.md", "data/train-00000-of-00001.parquet"]
    card = (tmp_path / "hub" / "README.md").read_bytes()
    files = [{"split": "train", "path": "data/train-*"}]
    assert front_matter(card)["configs"] == [{"config_name": "default", "data_files": files}]
    assert front_matter(card)["size_categories"] == ["n<1K"]
    assert b"5 images of 3 identities, 16 x 16 pixels." in card
    assert dataset.digest.encode() in card
