"""Published recipes: their numbers, and copies that may be changed."""

import pytest

from rayface import config
from rayface.heads.from_config import build_config_margin
from rayface.presets import PRESETS, preset_values


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ms1mv3", ("r50", "arcface", 0.5, 1.0, 0.1, 1024, 8)),
        ("glint360k", ("r100", "cosface", 0.4, 1.0, 0.1, 1024, 8)),
        ("webface4m", ("r50", "cosface", 0.4, 1.0, 0.1, 1024, 8)),
        ("webface42m", ("r100", "cosface", 0.4, 0.2, 0.4, 4096, 32)),
    ],
)
def test_preset_of_a_published_recipe_has_its_numbers(name: str, values: tuple[object, ...]) -> None:
    found = config.load(name)
    head = found.head
    margin = build_config_margin(head)
    assert margin.scale == 64
    numbers = (found.backbone.name, head.margin, margin.m2 + margin.m3, head.sample_rate, found.optim.lr)
    assert (*numbers, found.train.batch_size, found.train.num_workers) == values
    assert (found.name, found.train.epochs, found.optim.weight_decay) == (name, 20, 5e-4)


def test_preset_values_changed_by_a_caller_leave_the_preset_as_it_was() -> None:
    values = preset_values("webface4m")
    values["head"]["margin"] = "arcface"
    values["data"] = {}
    assert preset_values("webface4m")["head"]["margin"] == "cosface"
    assert "data" not in PRESETS["webface4m"]
    assert PRESETS["webface12m"]["head"]["margin"] == "cosface"  # recipes share no dict


@pytest.mark.parametrize(("name", "hint"), [("webface42", ": did you mean webface42m\\?$"), ("zzz", "debug$")])
def test_preset_values_of_an_unknown_name_lists_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"^preset: '{name}': must be one of webface4m, .*{hint}") as caught:
        preset_values(name)
    assert "\n" not in str(caught.value)
