"""Sweep files: base config, search space, objectives and search settings."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rayface import config as configs
from rayface.config import CleanConfig, Config, PruneConfig
from rayface.config_fields import DatabaseUri, PathText, Positive
from rayface.credentials import mask, masked
from rayface.files import write_text
from rayface.storage import AnyPath
from rayface.tuning.search_space import Parameter, Scalar, grid
from rayface.values import Tree, is_null, optional_fields, parse_override, shown, to_text
from rayface.yaml_text import read_yaml

_OWN = "sweep."
_STAGES = ("prune", "clean")  # groups of the prune stage that may precede training
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
# Objectives that are also logged during training, with their metric names; a pruner needs one of them.
WATCHED = {"accuracy_mean": "eval/accuracy", "loss": "train/loss"}
# Keys that may change on a resume; a change of any other key would make the trials incomparable.
FREE = {"sweep.trials", "sweep.concurrency", "sweep.time_budget", "sweep.output", "cluster.address", "cluster.debug"}

# Keys without a default, with what they must be.
_REQUIRED = {"search": "give the keys to search, for example search: {optim.lr: {low: 0.01, high: 1, log: true}}"}

Seconds = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Objective:
    metric: str = "accuracy_mean"
    """Name of a number in a run's result.json: accuracy_mean, loss, seconds, images_per_second, ..."""
    mode: Literal["max", "min"] = "max"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SweepConfig:
    """Search settings."""

    trials: Positive = 16
    """Total number of trials, including failed ones; a grid may end earlier."""
    concurrency: Positive = 1
    """Number of concurrent trials; each has train.num_workers workers."""
    time_budget: Seconds | None = None
    """Seconds after which no more trials start."""
    sampler: Literal["tpe", "cmaes", "gp", "random", "grid"] = "tpe"
    """Chooses the values of the trials: Optuna's samplers, or all points of a grid."""
    pruner: Literal["asha", "hyperband", "median", "none"] = "none"
    """Stops trials early by their validation accuracy (evaluate.every) or loss."""
    min_steps: Positive = 1
    """Training steps before a trial may be pruned."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha, hyperband: one in this many trials continues at each rung."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the sampler."""
    storage: DatabaseUri | None = None
    """Storage of the Optuna study: sqlite:///FILE, postgresql://..., mysql://.... Unset: OPTUNA_STORAGE, which may hold
    a password, else sqlite in the sweep's directory."""
    output: PathText | None = None
    """Sweep directory: a path on a disk that all nodes share, or a URI. Unset: the next free sweeps/NAME-001."""


def _parameter(value: object) -> Any:
    return {"choices": value} if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Spec:
    """A sweep file."""

    preset: str | None = None
    config: Tree = Field(default_factory=dict)
    """Base config of all trials, with the keys of a file for `rayface train -c`."""
    search: dict[str, Annotated[Parameter, BeforeValidator(_parameter)]] = Field(min_length=1)
    """Config key to a list of choices or a range; if prune.embeddings is set, data.train is pruned first."""
    objectives: tuple[Objective, ...] = Field(default=(Objective(),), min_length=1)
    heatmaps: tuple[tuple[str, str], ...] = ()
    """Pairs of keys; one heat map of the first objective is drawn for each."""
    sweep: SweepConfig = SweepConfig()

    @property
    def num_trials(self) -> int:
        """Number of trials; a grid may have fewer points than sweep.trials."""
        most = self.sweep.trials
        return min(most, len(grid(self.search))) if self.sweep.sampler == "grid" else most


_ADAPTER = TypeAdapter(Spec)


def load(file: Path, overrides: Sequence[str], preset: str | None = None) -> tuple[Spec, Config]:
    """Read a sweep file; `sweep.*` overrides are search settings, all others config keys.

    Raises:
        ValueError: one line.
    """
    tree = read_yaml(file)
    if "stages" in tree:
        raise ValueError(f"{file}: is an experiment, not a sweep: run it with `rayface run {shlex.quote(str(file))}`")
    # The groups of the prune stage may also stand at the top level, beside `config`.
    stages = {group: tree.pop(group) or {} for group in _STAGES if group in tree}
    spec = _build(tree, file)
    own = [text for text in overrides if text.startswith(_OWN)]
    spec = _with_overrides(spec, own, file)
    if preset is not None:
        spec = replace(spec, preset=preset)
    base = configs.with_overrides(configs.load(spec.preset), {**spec.config, **stages})
    base = configs.with_overrides(base, [text for text in overrides if text not in own])
    base = configs.with_overrides(base, {"train.output": None})
    spec = replace(spec, search={key: _typed(key, parameter, base) for key, parameter in spec.search.items()})
    if not base.data.train and "data.train" in spec.search:  # the checks before the first trial need a dataset
        base = configs.with_overrides(base, {"data.train": spec.search["data.train"].edges()[0]})
    _check(spec, base)
    return spec, base


def dump(spec: Spec, base: Config, path: AnyPath) -> None:
    """Write a resolved sweep file that `load` reads."""
    tree = {**asdict(replace(spec, preset=None)), "config": configs.to_dict(base, groups_of(base))}
    write_text(path, yaml.safe_dump(masked(json.loads(json.dumps(tree))), sort_keys=False))


def prunes(base: Config) -> bool:
    """Return whether every trial prunes data.train first."""
    return base.prune.embeddings is not None


def groups_of(base: Config) -> tuple[str, ...]:
    """Return the groups of Config that a trial uses."""
    return (*configs.TRAINING, *(_STAGES if prunes(base) else ()))


def check_resumable(overrides: Sequence[str]) -> None:
    """Refuse overrides that would make new trials incomparable with finished ones.

    Raises:
        ValueError: one line.
    """
    for text in overrides:
        if (key := text.partition("=")[0]) not in FREE:
            raise ValueError(f"{key}: must not change on a resume: only {', '.join(sorted(FREE))} may be given")


def flat(spec: Spec, base: Config) -> Tree:
    """Return the resolved content of a sweep file by dotted key, as JSON types."""
    tree = json.loads(json.dumps(asdict(spec)))
    groups = {
        "search": {key: parameter.given() for key, parameter in spec.search.items()},
        "sweep": tree["sweep"],
    }
    out = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
    return {
        **configs.flat(base, groups_of(base)),
        **out,
        "objectives": tree["objectives"],
        "heatmaps": tree["heatmaps"],
    }


def _with_overrides(spec: Spec, overrides: Sequence[str], file: Path) -> Spec:
    tree = json.loads(json.dumps(asdict(spec)))
    optional = optional_fields(SweepConfig)
    for text in overrides:
        key, value = parse_override(text)
        group, _, name = key.partition(".")
        null = group == "sweep" and name in optional and is_null(value)
        tree[group] = {**(tree[group] or {}), name: None if null else value}
    return _build(tree, file)


def _typed(key: str, parameter: Parameter, base: Config) -> Parameter:
    """Return the parameter with the values of its choices and of `when` parsed as their config keys' types."""
    choices, when = parameter.choices, parameter.when
    if choices is not None:
        choices = tuple(_value(key, choice, base) for choice in choices)
    if when is not None:
        when = {
            other: tuple(_value(other, one, base) for one in (value if isinstance(value, tuple) else (value,)))
            for other, value in when.items()
        }
    return replace(parameter, choices=choices, when=when)


def _value(key: str, value: Scalar, base: Config) -> Scalar:
    found = configs.value_of(configs.to_dict(configs.with_overrides(base, {key: value})), key)
    if isinstance(found, list | tuple | dict):  # Optuna does not accept lists as choices
        found = found[0] if key == "data.train" and len(found) == 1 else to_text(found)
    return found


def _build(tree: Mapping[str, object], file: Path) -> Spec:
    try:
        return _ADAPTER.validate_python(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
        if first["type"] == "missing" and key in _REQUIRED:
            raise ValueError(f"{file}: {key}: is not set: {_REQUIRED[key]}") from error
        message = first["msg"].removeprefix("Value error, ")
        message = f"{message[0].lower()}{message[1:]}"
        if first["type"] == "unexpected_keyword_argument":
            known = [f.name for f in fields(SweepConfig if key.startswith("sweep.") else Spec)]
            near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
            message = "is not a key of sweep files" + (f": did you mean {near[0]}?" if near else "")
        raise ValueError(f"{file}: {key}: {shown(first['input'])}: {message}") from error


def _check(spec: Spec, base: Config) -> None:
    before: list[str] = []
    for key, parameter in spec.search.items():
        for other in parameter.when or {}:
            if other not in before:
                raise ValueError(f"search.{key}.when: {other}: must be a parameter listed before {key}")
        for value in parameter.edges():
            configs.with_overrides(base, {key: value})
        before.append(key)
    for key in (key for pair in spec.heatmaps for key in pair):
        if key not in spec.search:
            raise ValueError(f"heatmaps: {key}: must be one of the parameters: {', '.join(spec.search)}")
    _check_stages(spec, base)
    _check_objectives(spec, base)
    uri = spec.sweep.storage
    if uri is not None and mask(uri) != uri:
        raise ValueError("sweep.storage: must not hold a password, it is stored: set OPTUNA_STORAGE instead")
    for key, parameter in spec.search.items():
        if masked(parameter.given()) != parameter.given():
            rule = "must not hold credentials, Optuna stores it in plain text: set them in the environment"
            raise ValueError(f"search: {key}: {rule}")
    if spec.sweep.sampler == "grid":
        grid(spec.search)


def _check_stages(spec: Spec, base: Config) -> None:
    """Refuse invalid settings of the prune stage, including searched ones, before the first trial starts."""
    searched = {key: p.edges() for key, p in spec.search.items() if key.startswith(tuple(f"{g}." for g in _STAGES))}
    if not prunes(base):
        if searched or (base.prune, base.clean) != (PruneConfig(), CleanConfig()):
            raise ValueError("prune.embeddings: is not set: must be the output of `rayface embed` for data.train")
        return
    from rayface.curate.prune.settings import check_settings  # imports numba, which takes a second

    first = {key: edges[0] for key, edges in searched.items()}
    tried = [{**first, key: edge} for key, edges in searched.items() for edge in edges] or [first]
    for values in tried:
        check_settings(configs.with_overrides(base, values))


def _check_objectives(spec: Spec, base: Config) -> None:
    metrics = [objective.metric for objective in spec.objectives]
    if "accuracy_mean" in metrics and base.evaluate.pairs is None and not base.evaluate.bin:
        raise ValueError("evaluate.pairs: is not set: objective accuracy_mean requires it and evaluate.data")
    if spec.sweep.sampler == "cmaes" and len(metrics) > 1:
        raise ValueError("sweep.sampler: cmaes: must be tpe, gp, random or grid with several objectives")
    pruner = spec.sweep.pruner
    if pruner == "none":
        return
    if len(metrics) > 1:
        raise ValueError(f"sweep.pruner: {pruner}: must be none with several objectives: Optuna does not support it")
    if metrics[0] not in WATCHED:
        raise ValueError(
            f"sweep.pruner: {pruner}: requires one of the objectives {', '.join(WATCHED)}: change it, or use none"
        )
    if metrics[0] == "accuracy_mean" and base.evaluate.every == 0:
        raise ValueError("evaluate.every: 0: a pruner requires validation during training: set the steps between them")
