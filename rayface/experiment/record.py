"""Record of an experiment's stages, in experiment.json."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayface import config as configs
from rayface.config import Config
from rayface.credentials import masked
from rayface.files import write_json
from rayface.models.model_info import DESCRIPTION
from rayface.stages import INPUT_KINDS, STAGES, fingerprints
from rayface.storage import AnyPath, DataError

_FILE = "experiment.json"
_VERSION = 3  # models by their weights; version 2 had them by model.json, 1 settings and inputs by command-line option


@dataclass(frozen=True, kw_only=True)
class Started:
    """A started stage: settings and inputs that decide its result."""

    verb: str
    settings: dict[str, object]
    inputs: dict[str, str | None]


@dataclass(frozen=True, kw_only=True)
class Done(Started):
    """A finished stage: also fingerprint and content of its result."""

    mark: str
    seconds: float
    result: dict[str, object]


class Record:
    """The started and finished stages in a folder; every change is written to disk at once."""

    def __init__(self, root: AnyPath) -> None:
        self._path = root / _FILE
        try:
            tree = json.loads(self._path.read_text())
            stages = tree["stages"] if "version" in tree else upgraded(tree["stages"])
            stages = stages if tree.get("version") == _VERSION else by_weights(stages)
            kinds = {name: Done if "mark" in stage else Started for name, stage in stages.items()}
            self._stages = {name: kinds[name](**stage) for name, stage in stages.items()}
        except FileNotFoundError:
            self._stages = {}
        except DataError:  # the object store refuses it
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self._path}: cannot be read: {error}: delete it and the stages beside it") from error

    def begun(self, name: str) -> bool:
        return name in self._stages

    def settings(self, name: str) -> dict[str, object]:
        """Return the settings with which a stage was last started; empty if it never was."""
        return dict(self._stages[name].settings) if self.begun(name) else {}

    def inputs(self, name: str) -> dict[str, str | None]:
        """Return the inputs with which a stage was last started; empty if it never was."""
        return dict(self._stages[name].inputs) if self.begun(name) else {}

    def finished(self, name: str) -> Done | None:
        stage = self._stages.get(name)
        return stage if isinstance(stage, Done) else None

    def begin(self, name: str, *, verb: str, settings: Mapping[str, object], inputs: Mapping[str, str | None]) -> None:
        self._stages[name] = Started(verb=verb, settings=dict(settings), inputs=dict(inputs))
        self._save()

    def ended(self, name: str, *, mark: str, seconds: float, result: Mapping[str, object]) -> Done | None:
        """Return the record of a started stage whose end was not recorded; None if it was not started."""
        stage = self._stages.get(name)
        return None if stage is None else Done(**vars(stage), mark=mark, seconds=seconds, result=dict(result))

    def finish(self, name: str, *, mark: str, seconds: float, result: Mapping[str, object]) -> Done:
        done = Done(**vars(self._stages[name]), mark=mark, seconds=seconds, result=dict(result))
        self._stages[name] = done
        self._save()
        return done

    def _save(self) -> None:
        stages = {name: asdict(stage) for name, stage in self._stages.items()}
        write_json(self._path, {"version": _VERSION, "stages": stages})


def upgraded(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record of version 1, by command-line option, to one by config key."""
    found = {}
    for name, stage in stages.items():
        flags = STAGES[stage["verb"]].flags
        settings = {flags.get(option, option): value for option, value in stage["settings"].items()}
        inputs = {}
        for given, mark in stage["inputs"].items():
            option, _, paths = given.partition(" ")
            if option in flags:
                own = ", ".join(path if "://" in path else os.path.abspath(path) for path in paths.split(", "))
                given = f"{flags[option]} {own}"
            inputs[given] = mark
        found[name] = {
            **stage,
            "settings": {key: _parsed(key, value) for key, value in settings.items()},
            "inputs": inputs,
        }
    return found


def by_weights(stages: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record of version 2, with fingerprints of models by the whole model.json, to those of their weights."""

    def converted(given: str, mark: str | None) -> str | None:
        key, _, path = given.partition(" ")
        if "model" not in INPUT_KINDS.get(key, ()) or fingerprints.of_file(DESCRIPTION)(Path(path)) != mark:
            return mark
        return fingerprints.of_fields(DESCRIPTION, "sha256")(Path(path)) or mark

    return {
        name: {**stage, "inputs": {given: converted(given, mark) for given, mark in stage["inputs"].items()}}
        for name, stage in stages.items()
    }


def _parsed(key: str, value: object) -> Any:
    """Return a value parsed as the type of its config key; references and unknown keys are returned unchanged."""
    if key not in configs.flat(Config()) or "${" in json.dumps(value) or value is None:
        return value
    try:
        read = configs.with_overrides(Config(), {key: value})
    except ValueError:
        return value
    return masked(json.loads(json.dumps(configs.value_of(configs.to_dict(read), key))))


def brief(result: Mapping[str, object]) -> dict[str, object]:
    """Return the numbers and texts of a verb's result, without lists and config."""

    def plain(value: object) -> bool:
        return value is None or isinstance(value, bool | int | float | str)

    kept = {key: value for key, value in result.items() if key != "config"}
    return {
        key: value
        for key, value in kept.items()
        if plain(value) or (isinstance(value, Mapping) and all(map(plain, value.values())))
    }
