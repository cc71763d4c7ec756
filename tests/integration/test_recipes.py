"""Recipes on the drawn set: every one repeats the losses that its file has recorded."""

from pathlib import Path

import pytest

from recipes import drawn, recipe

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.draw(tmp_path_factory.mktemp("recipes") / "set")


@pytest.mark.parametrize("name", recipe.names())
def test_recipe_on_the_drawn_set_repeats_its_recorded_losses(name: str, faces: Path, tmp_path: Path) -> None:
    """Half of them on one worker, the others on two; `make recipes` runs each twice on both."""
    own = recipe.load(name)
    workers = 1 + recipe.names().index(name) % 2
    losses = drawn.drawn_losses(own, faces, tmp_path / "run", workers)
    assert drawn.difference(losses, own.losses[workers]) <= drawn.TOLERANCE
