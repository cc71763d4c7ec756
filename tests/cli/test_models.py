"""The verb of models: a row for each backbone."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []

    def table(names: list[str], **options: Any) -> list[dict[str, Any]]:
        found.append((list(names), options))
        sizes = {"parameters": 43_590_976, "macs": 6_300_000_000, "embedding_size": 512, "images_per_second": 12.5}
        return [{"name": name, "paper": "2203.15565", **sizes} for name in names]

    monkeypatch.setattr("rayface.backbones.table.backbone_table", table)
    return found


def test_backbones_as_a_table_show_sizes_in_units_and_speed_if_measured(
    call: Call, asked: list[tuple[Any, ...]]
) -> None:
    code, out, _ = call("backbones", "r50")
    assert code == 0
    assert "43.591M" in out
    assert "6.300G" in out
    assert "images/s" not in out
    assert "12.5" in call("backbones", "r50", "--measure", "--batch-size=4")[1]
    assert asked[1][1] == {"embedding_size": 512, "image_size": 112, "measure": True, "batch_size": 4}


def test_backbones_with_a_setting_of_the_measurement_without_it_is_refused(
    call: Call, asked: list[tuple[Any, ...]]
) -> None:
    code, _, err = call("backbones", "r50", "--batch-size=4")
    assert (code, asked) == (2, [])
    assert "--batch-size: 4: has no effect: must be with --measure, or left out" in err


def test_backbones_as_json_hold_all_numbers(call: Call, asked: list[tuple[Any, ...]]) -> None:
    code, out, _ = call("backbones", "r50", "r100", "--image-size=224", "--json")
    assert code == 0
    assert [row["macs"] for row in json.loads(out)["backbones"]] == [6_300_000_000] * 2
    assert asked[0][1]["image_size"] == 224


def test_backbones_of_a_tiny_image_are_a_usage_error(call: Call, asked: list[tuple[Any, ...]]) -> None:
    code, _, err = call("backbones", "--image-size=8")
    assert (code, asked) == (2, [])
    assert "--image-size" in err
