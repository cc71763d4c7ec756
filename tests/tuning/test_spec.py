"""Sweep files: what is read, refused and written again."""

from pathlib import Path

import optuna
import pytest
import torch
import yaml

from rayface import config as configs
from rayface.heads.from_config import build_config_margin
from rayface.training.builders import build_config_backbone
from rayface.training.schedules import RunLength, build_schedule
from rayface.tuning import spec as specs
from rayface.tuning.search_space import suggest
from tests.tuning.searched_studies import CONFIGS, PLACES


def write(tmp_path, **groups):
    path = tmp_path / "try.yaml"
    path.write_text(yaml.safe_dump({"search": {"optim.lr": {"low": "1e-2", "high": 1}}, **groups}))
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", [None, "debug"])
def test_sweep_file_of_ours_is_read_and_all_it_suggests_can_be_built(path, preset):
    extra = ["prune.embeddings=emb"] if path.stem == "face_nms" else []
    spec, base = specs.load(path, [*PLACES, *extra, "sweep.trials=3"], preset)
    assert spec.sweep.trials == 3
    assert base.data.train == (str(Path("faces").absolute()),)
    assert base.backbone.embedding_size == (64 if preset else 256)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = [suggest(spec.search, study.ask()) for _ in range(12)]
    assert set().union(*seen) == set(spec.search)
    for values in seen:
        config = configs.with_overrides(base, values)
        build_config_margin(config.head)
        with torch.device("meta"):
            net = build_config_backbone(config)
        optimizer = torch.optim.SGD(net.parameters(), lr=config.optim.lr)
        build_schedule(config.schedule, optimizer, RunLength(total_steps=100, steps_per_epoch=10)).step(1.0)


def test_sweep_file_with_preset_and_overrides_is_dumped_and_read_back(tmp_path):
    file = write(tmp_path, preset="mini", config={"optim": {"momentum": 0.8}}, sweep={"trials": 5})
    spec, base = specs.load(file, [*PLACES, "train.epochs=3", "sweep.pruner=asha", "evaluate.every=9"])
    assert (base.optim.momentum, base.train.epochs, base.backbone.name) == (0.8, 3, "mini")
    assert (spec.sweep.trials, spec.sweep.pruner) == (5, "asha")
    assert spec.search["optim.lr"].low == 0.01
    specs.dump(spec, base, tmp_path / "again.yaml")
    again, same = specs.load(tmp_path / "again.yaml", [])
    assert same == base
    assert again.search == spec.search
    assert again.sweep == spec.sweep


@pytest.mark.parametrize(
    ("groups", "overrides", "message"),
    [
        ({"serch": {}}, [], "serch.*is not a key of sweep files: did you mean search"),
        ({"sweep": {"trails": 3}}, [], "sweep.trails: 3: is not a key of sweep files: did you mean trials"),
        ({"search": {"optim.rate": [1]}}, [], "optim.rate: is not a config key"),
        ({"search": {"optim.lr": [0.1, -1]}}, [], "optim.lr: -1"),
        ({"search": {"optim.lr": {"low": 2, "high": 1}}}, [], "low <= high"),
        (
            {"search": {"optim.lr": {"low": 1, "high": 2, "when": {"head.scale": 1}}}},
            [],
            "must be a parameter listed",
        ),
        ({"heatmaps": [["optim.lr", "head.scale"]]}, [], "heatmaps: head.scale: must be one of the parameters"),
        ({}, ["sweep.pruner=asha"], "evaluate.every: 0: a pruner requires validation"),
        (
            {"objectives": [{"metric": "seconds", "mode": "min"}]},
            ["sweep.pruner=median"],
            "requires one of the objectives",
        ),
        ({"sweep": {"sampler": "grid"}}, [], "a grid requires choices, or a step"),
        ({"search": {"prune.keep": [0.5]}}, [], "prune.embeddings: is not set"),
        (
            {"search": {"prune.kep": [0.5]}},
            ["prune.embeddings=e"],
            "prune.kep: is not a config key: did you mean",
        ),
        ({"search": {"prune.keep": [1.5]}}, ["prune.embeddings=e"], "1.5"),
        ({"stages": [{"train": {}}]}, [], r"^\S+try.yaml: is an experiment, not a sweep: run it with `rayface run /"),
        ({"search": {}}, [], r"search: \{\}: dictionary should have at least 1 item"),
        ({"search": "x" * 500}, [], r"^\S+try.yaml: search: 'x{199}\.\.\.: input should be a valid dictionary$"),
        ({"heatmaps": [["optim.lr"]]}, [], r"heatmaps\.0\.1: .*: field required$"),
        ({"objectives": "loss"}, [], r"objectives: 'loss': input should be a valid tuple$"),
        ({"search": {"optim.lr": {"low": 1}}}, [], r"optim.lr: \{'low': '1'\}: must have choices, or low and high"),
    ],
)
def test_sweep_file_with_a_bad_key_or_value_raises_one_line(tmp_path, groups, overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        specs.load(write(tmp_path, **groups), [*PLACES, *overrides])
    assert "\n" not in str(caught.value)


def test_sweep_file_without_search_raises_what_is_not_set_without_values(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("optim: {lr: 0.1}\n")
    with pytest.raises(ValueError, match=rf"^{file}: search: is not set: give the keys to search, for example"):
        specs.load(file, [])


def test_sweep_file_with_several_objectives_and_a_pruner_raises(tmp_path):
    two = [{"metric": "accuracy_mean", "mode": "max"}, {"metric": "seconds", "mode": "min"}]
    with pytest.raises(ValueError, match="must be none with several objectives"):
        specs.load(write(tmp_path, objectives=two), [*PLACES, "sweep.pruner=asha", "evaluate.every=5"])


def test_sweep_file_with_several_objectives_and_cmaes_raises(tmp_path):
    two = [{"metric": "accuracy_mean", "mode": "max"}, {"metric": "seconds", "mode": "min"}]
    with pytest.raises(ValueError, match=r"sweep\.sampler: cmaes: must be tpe, gp, random or grid"):
        specs.load(write(tmp_path, objectives=two), [*PLACES, "sweep.sampler=cmaes"])


def test_sweep_storage_with_a_password_raises_without_naming_it(tmp_path):
    for uri in (
        "postgresql://me:secret@host/db",
        "mysql+pymysql://me:se/cret@host:3306/db",
        "postgresql://host/db?user=me&password=secret",
        "mysql://host/db?passwd=secret",
    ):
        with pytest.raises(ValueError, match=r"must not hold a password.*OPTUNA_STORAGE") as caught:
            specs.load(write(tmp_path), [*PLACES, f"sweep.storage={uri}"])
        assert "cret" not in str(caught.value)
    for uri in ("postgresql://me@host:5432/db", "sqlite:///other.db"):
        specs.load(write(tmp_path), [*PLACES, f"sweep.storage={uri}"])


def test_accuracy_objective_without_pairs_raises(tmp_path):
    with pytest.raises(ValueError, match=r"evaluate\.pairs: is not set: objective accuracy_mean requires it"):
        specs.load(write(tmp_path), ["data.train=faces"])


def test_check_resumable_with_a_fixed_key_raises():
    specs.check_resumable(["sweep.trials=9", "sweep.time_budget=60"])
    for key in ("sweep.sampler", "optim.lr"):
        with pytest.raises(ValueError, match=f"{key}: must not change on a resume"):
            specs.check_resumable([f"{key}=1"])


def test_sweep_file_values_are_typed_by_their_fields(tmp_path):
    file = tmp_path / "try.yaml"
    file.write_text(
        "search:\n  head.name: [no, 0100]\n  optim.lr: [1, 1e-2]\n  schedule.restart_after: [null, 04]\n"
        "  train.batch_size: {low: 010, high: 020}\n  optim.momentum: {low: 0.0, high: 0.5}\n"
        "  schedule.decay: {choices: [2], when: {schedule.restart_after: 4, optim.lr: [1.0]}}\n"
        "  prune.keep: [1, .5]\n  prune.method: [random, herding]\n"
        "prune: {min_images: 02, baselines: [herding], block_size: 1KB}\n"
    )
    overrides = [*PLACES, "sweep.trials=010", "sweep.storage=null", "sweep.output=out #2", "prune.embeddings=e #1"]
    spec, base = specs.load(file, overrides)
    assert spec.search["head.name"].choices == ("no", "0100")
    assert spec.search["optim.lr"].choices == (1.0, 0.01)
    assert spec.search["schedule.restart_after"].choices == (None, 4)
    assert (spec.search["train.batch_size"].low, spec.search["train.batch_size"].integer) == (10, True)
    assert not spec.search["optim.momentum"].integer
    assert spec.search["schedule.decay"].when == {"schedule.restart_after": (4,), "optim.lr": (1.0,)}
    assert spec.search["prune.keep"].choices == (1.0, 0.5)
    assert (spec.sweep.trials, spec.sweep.storage, spec.sweep.output) == (10, None, str(Path("out #2").absolute()))
    prune = {"min_images": 2, "baselines": ("herding",), "block_size": 1024, "embeddings": str(Path("e #1").absolute())}
    assert {name: getattr(base.prune, name) for name in prune} == prune
    specs.dump(spec, base, tmp_path / "again.yaml")
    again, again_base = specs.load(tmp_path / "again.yaml", [])
    assert (again.search, again.sweep, again_base.prune) == (spec.search, spec.sweep, base.prune)


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("data.train", ["a", "[b,c #1]"]),
        ("backbone.weights", ["w", None]),
        ("prune.head", ["h"]),
        ("prune.embeddings", ["e"]),
    ],
)
def test_searched_paths_that_are_relative_become_absolute(tmp_path, monkeypatch, key, given):
    """Trials run in working directories of their own."""
    here = tmp_path / "here"
    (here / "h").mkdir(parents=True)
    (here / "h" / "config.yaml").touch()
    monkeypatch.chdir(here)
    file = write(tmp_path, search={key: given}, prune={"threshold": 0.5, "baselines": ["diffprob"], "head": "h"})
    spec, base = specs.load(file, [*PLACES, "prune.embeddings=e"])
    monkeypatch.chdir("/")
    assert base.prune.embeddings == f"{here}/e"
    choices = spec.search[key].choices
    if key.startswith("prune."):
        assert choices == (f"{here}/{given[0]}",)
        return
    found = [configs.value_of(configs.to_dict(configs.with_overrides(base, {key: choice})), key) for choice in choices]
    wanted = {"data.train": [[f"{here}/a"], [f"{here}/b", f"{here}/c #1"]], "backbone.weights": [f"{here}/w", None]}
    assert found == wanted[key]


def test_sweep_file_with_a_key_given_twice_raises_one_line(tmp_path):
    file = tmp_path / "try.yaml"
    file.write_text("search: {optim.lr: [1]}\nconfig: {optim.momentum: 0.5, optim: {momentum: 0.6}}\n")
    with pytest.raises(ValueError, match=r"optim\.momentum: is given twice"):
        specs.load(file, PLACES)
    file.write_text("search:\n  optim.lr: [1]\n  optim.lr: [2]\n")
    with pytest.raises(ValueError, match=r"try\.yaml: line 3: optim\.lr: is given twice, first in line 2"):
        specs.load(file, PLACES)
