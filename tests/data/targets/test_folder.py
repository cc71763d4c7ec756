"""Datasets written as folders: names that stay inside and apart."""

import os
from pathlib import Path

import pytest

from rayface.data.targets import target_of
from rayface.data.targets.folder import file_name
from tests.data.targets.small_set import dataset_of


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
