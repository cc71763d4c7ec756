"""The files of recipes/ and their runner."""

import re
from pathlib import Path

import pytest
import yaml

from rayface.experiment import spec
from recipes import drawn, faces
from recipes import recipe as recipes

PLACES = {"FACES": Path("faces"), "MADE": Path("made")}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes with a copy of AdaFace's."""
    (tmp_path / "adaface.yaml").write_text((recipes.HERE / "adaface.yaml").read_text())
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    return tmp_path


def test_page_of_the_folder_lists_every_recipe() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.yaml\)", (recipes.HERE / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == recipes.names()


@pytest.mark.parametrize("name", recipes.names())
def test_stages_of_a_recipe_are_those_of_an_experiment(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    for keys, stages, preset in (
        (faces.FACES, faces.staged(recipe), "mini"),
        (drawn.DRAWN, recipe.drawn, "debug"),
    ):
        file = recipes.write_experiment(tmp_path / "recipe.json", keys, stages, preset, PLACES)
        assert spec.load(file, ["train.seed=1"]).stages
        assert "$FACES" not in file.read_text()
    trained = {stage["name"] for stage in recipe.faces if "train" in stage}
    assert {*recipe.rows} <= trained
    for reference in recipe.baseline:
        other, row = reference.split("/")
        assert row in recipes.load(other).rows


@pytest.mark.parametrize("name", recipes.names())
def test_recorded_results_are_of_rows_of_the_recipe(name: str) -> None:
    recipe = recipes.load(name)
    found = recipes.results(recipe, None)
    assert len({(each.row, each.test, each.seed) for each in found}) == len(found)
    assert all(each.interval[0] < each.accuracy < each.interval[1] for each in found)


def test_missing_stages_are_those_of_rows_without_a_result_and_what_they_refer_to() -> None:
    names = [stage["name"] for stage in faces.missing(recipes.load("partial_fc"), 7)]
    assert names == [stage["name"] for stage in faces.staged(recipes.load("partial_fc"))]
    assert faces.missing(recipes.load("dcq"), 0) == []


def test_record_then_load_returns_the_results_and_keeps_the_rest_of_the_file(own: Path) -> None:
    recipe = recipes.load("adaface")
    before = (own / "adaface.yaml").read_text().partition(recipes.MARK)[0]
    result = {
        "row": "adaface",
        "test": "lfw",
        "seed": 0,
        "accuracy": 0.75,
        "interval": [0.74, 0.76],
        "steps": 404,
        "images_per_second": 300.0,
        "date": "2026-11-27",
        "machine": "2 CPUs",
    }
    second = {**result, "seed": 1, "accuracy": 0.77, "interval": [0.76, 0.78]}
    recipes.record(recipe, losses={1: [12.5, 11.25]}, measured=[result, second])
    text = (own / "adaface.yaml").read_text()
    assert text.startswith(before)
    again = recipes.load("adaface")
    assert again.losses == {1: [12.5, 11.25]}
    assert [each.as_dict() for each in recipes.results(again, None)] == [result, second]
    row = next(line for line in recipes.table(again).splitlines() if "AdaFace | LFW |" in line)
    assert row == "| AdaFace | LFW | 76.0 % ± 1.4 | 75.0 [74.0, 76.0], 77.0 [76.0, 78.0] | 404 | 300 |"
    assert "not measured yet" in recipes.table(again)
    recipes.record(again, losses=again.losses, measured=again.measured)
    assert (own / "adaface.yaml").read_text() == text
    assert yaml.safe_load(text)["measured"][1]["seed"] == 1


def test_difference_of_losses_is_relative_and_infinite_for_other_numbers_of_steps() -> None:
    assert drawn.difference([10.0, 4.0], [10.0, 5.0]) == pytest.approx(0.2)
    assert drawn.difference([10.0], [10.0, 5.0]) == float("inf")
