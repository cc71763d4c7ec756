"""The registry of selection methods, and what of prune's settings they refuse."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rayface.config import PruneConfig
from rayface.curate.prune.methods import (
    METHODS,
    FaceNMS,
    Herding,
    Random,
    baseline_settings,
    build_method,
    check_methods,
)


def test_build_method_of_every_name_takes_its_settings(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    for name, method in METHODS.items():
        settings = PruneConfig(method=name, keep=0.4, min_images=3, seed=5, global_weight=0.2, head=str(tmp_path))
        assert type(build_method(settings)) is method
    settings = PruneConfig(keep=0.4, min_images=3, seed=5, global_weight=0.2)
    assert build_method(settings) == FaceNMS(threshold=1.0, min_images=3, global_weight=0.2)
    assert build_method(baseline_settings(settings, "random", 0.25)) == Random(keep=0.25, min_images=3, seed=5)
    assert build_method(baseline_settings(settings, "herding", 0.25)) == Herding(keep=0.25, min_images=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "nearest"},
            r"^prune.method: 'nearest': must be one of face_nms, .*, or registered by a plugin",
        ),
        ({"baselines": ("nearest",)}, r"^prune.baselines: 'nearest': must be one of face_nms"),
        ({"head": "run"}, r"^prune.head: only diffprob uses it: add that to prune.method or prune.baselines"),
        ({"method": "herding", "global_weight": 0.5}, r"^prune.global_weight: only face_nms uses it: add that to"),
        ({"baselines": ("diffprob",)}, r"^prune.head: is not set: must be the run whose model embedded the images"),
        ({"method": "random", "keep": None, "threshold": 0.5}, r"^prune.threshold: random has no threshold"),
    ],
)
def test_check_methods_of_settings_that_contradict_raises_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_methods(PruneConfig(**{"keep": 0.5, **settings}))


@dataclass(frozen=True, kw_only=True)
class Kept(Random):
    options: ClassVar[frozenset[str]] = frozenset({"spare"})
    spare: int = 0


@pytest.fixture
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "kept", Kept)


@pytest.mark.usefixtures("_kept")
def test_build_method_with_options_sets_its_fields_and_not_those_of_baselines() -> None:
    settings = PruneConfig(method="kept", keep=0.5, options={"spare": "3"})
    assert build_method(settings) == Kept(keep=0.5, spare=3)
    assert build_method(baseline_settings(settings, "kept", 0.25)) == Kept(keep=0.25)


@pytest.mark.usefixtures("_kept")
@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("kept", {"seed": 3}, r"^prune.options.seed: kept has no such setting: it has spare"),
        ("random", {"spare": 3}, r"^prune.options.spare: random has no such setting: it has none"),
        ("kept", {"spare": "many"}, r"^prune.options.spare: 'many': Input should be a valid integer"),
    ],
)
def test_build_method_with_wrong_options_raises_one_line(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method(PruneConfig(method=method, keep=0.5, options=options))


def test_check_methods_of_a_threshold_with_baselines_needs_a_method_with_a_threshold() -> None:
    settings = PruneConfig(threshold=0.5, baselines=("herding", "random"))
    check_methods(settings)  # baselines take the share that the threshold keeps
    with pytest.raises(ValueError, match=r"^prune.threshold: herding has no threshold"):
        check_methods(replace(settings, method="herding", baselines=("random",)))
