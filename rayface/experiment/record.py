"""What an experiment remembers of its stages, in experiment.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayface.files import write_json

_FILE = "experiment.json"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished stage: what decided its result, the mark of the result, and what the verb said."""

    verb: str
    settings: dict[str, Any]
    inputs: dict[str, str | None]
    mark: str
    seconds: float
    result: dict[str, Any]


class Record:
    """The stages that were begun and finished in a folder; every change is on disk before it counts."""

    def __init__(self, root: Path) -> None:
        self._path = root / _FILE
        try:
            self._stages: dict[str, dict[str, Any]] = {**json.loads(self._path.read_text())["stages"]}
        except FileNotFoundError:
            self._stages = {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._path}: cannot be read: {error}: delete it, and the stages beside it") from error

    def begun(self, name: str) -> bool:
        return name in self._stages

    def inputs(self, name: str) -> dict[str, str | None]:
        """What a stage was made of when it was last begun; nothing where it never was."""
        return dict(self._stages[name]["inputs"]) if self.begun(name) else {}

    def finished(self, name: str) -> Done | None:
        entry = self._stages.get(name)
        return Done(**entry) if entry and "mark" in entry else None

    def begin(self, name: str, *, verb: str, settings: Mapping[str, Any], inputs: Mapping[str, str | None]) -> None:
        self._stages[name] = {"verb": verb, "settings": dict(settings), "inputs": dict(inputs)}
        self._save()

    def ended(self, name: str, *, mark: str, seconds: float, result: Mapping[str, Any]) -> Done | None:
        """What a stage was that had begun, and whose end was not recorded."""
        return Done(**self._stages[name], mark=mark, seconds=seconds, result=dict(result)) if self.begun(name) else None

    def finish(self, name: str, *, mark: str, seconds: float, result: Mapping[str, Any]) -> Done:
        done = Done(**self._stages[name], mark=mark, seconds=seconds, result=dict(result))
        self._stages[name] = asdict(done)
        self._save()
        return done

    def _save(self) -> None:
        write_json(self._path, {"stages": self._stages})


def changed_key(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first key whose value is another one; keys that only one of them knows are of another version of rayface."""
    return next((key for key, value in now.items() if key in before and before[key] != value), None)


def brief(result: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and names of a verb's result, without its lists and its config."""

    def plain(value: Any) -> bool:
        return value is None or isinstance(value, bool | int | float | str)

    kept = {key: value for key, value in result.items() if key != "config"}
    return {
        key: value
        for key, value in kept.items()
        if plain(value) or (isinstance(value, Mapping) and all(map(plain, value.values())))
    }
