"""Datasets written in the layout of the Hugging Face Hub."""

import json
from pathlib import Path

import pytest

from rayface.data.dataset import open_dataset
from rayface.data.targets import target_of
from rayface.data.targets.hub import _size_category
from rayface.hub_card import front_matter
from tests.data.targets.small_set import dataset_of


@pytest.mark.parametrize(
    ("num_images", "wanted"), [(999, "n<1K"), (1000, "1K<n<10K"), (10_000_000, "10M<n<100M"), (10**8, "100M<n<1B")]
)
def test_size_category_of_a_bound_is_the_range_above_it(num_images: int, wanted: str) -> None:
    assert _size_category(num_images) == wanted


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


def test_hub_target_shows_names_of_the_source_as_plain_text(tmp_path: Path) -> None:
    dataset_of(tmp_path / "set")
    file = tmp_path / "set" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "a\n<b>", "source": "x |\n# y"}))
    target_of("hub")(open_dataset(str(tmp_path / "set")), str(tmp_path / "hub"))
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "\n# a &lt;b&gt;\n" in card
    assert "\n| source | x &#124; &#35; y |\n" in card
