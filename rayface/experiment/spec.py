"""What an experiment's file says: stages, each a name, a verb and its settings."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayface import config as configs
from rayface.config import Config, parse_paths
from rayface.experiment.verbs import OWN, TAKES, VERBS, Command
from rayface.values import parse_override, read_yaml, shown, to_text

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A verb with its settings; values may hold ${NAME}, the result of an earlier stage.

    Attributes:
        options: of the verb.
        keys: dotted config keys, the experiment's own ones first.
    """

    name: str
    verb: str
    options: Mapping[str, Any]
    keys: Mapping[str, Any] = field(default_factory=dict)

    def references(self) -> dict[str, list[str]]:
        """Names of the stages whose results it takes, by option or key."""
        found = {key: [*_names(value)] for key, value in {**self.options, **self.keys}.items()}
        return {key: names for key, names in found.items() if names}

    def own_paths(self, key: str, otherwise: Any = None) -> tuple[str, ...]:
        """Paths that an option or key names itself, beside results of stages; `otherwise` where it is not said."""
        if self.verb == "synth":  # its `pairs` is a number
            return ()
        value = {**self.options, **self.keys}.get(key, otherwise)
        paths = value if isinstance(value, list) else [value]
        return tuple(path for path in paths if isinstance(path, str) and not _REFERENCE.search(path))

    def with_paths(self, paths: Mapping[str, str]) -> "Stage":
        """The same, with paths in place of the names."""
        options, keys = _filled(dict(self.options), paths), _filled(dict(self.keys), paths)
        return Stage(name=self.name, verb=self.verb, options=options, keys=keys)

    def overrides(self) -> list[str]:
        """Its config keys as the command line has them."""
        return overrides_of(self.keys)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    name: str
    output: str | None
    stages: tuple[Stage, ...]


def overrides_of(keys: Mapping[str, Any]) -> list[str]:
    """Config keys as the command line has them."""
    return [f"{key}={to_text(value)}" for key, value in keys.items()]


def load(file: Path, overrides: Sequence[str], commands: Mapping[str, Command]) -> Experiment:
    """Read a file; overrides are config keys of every stage whose verb takes some.

    Raises:
        ValueError: one line that names the file, and the stage where it is of one.
    """
    tree = read_yaml(file)
    _known(tree, ("output", "config", "stages"), f"{file}")
    output, listed = tree.get("output"), tree.get("stages")
    if not (output is None or isinstance(output, str)):
        raise ValueError(f"{file}: output: {output!r}: must be a folder")
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{file}: stages: must be a list, for example '- name: emb', below it 'embed: {{model: ...}}'")
    shared = configs.open_groups(_mapping(tree.get("config") or {}, f"{file}: config"), f"{file}: config")
    given = dict(parse_override(text) for text in overrides)
    stages: list[Stage] = []
    for number, entry in enumerate(listed, 1):
        stage = _stage(entry, f"{file}: stage {number}", commands, shared, given)
        if stage.name in [earlier.name for earlier in stages]:
            raise ValueError(f"{file}: stage {number}: name: {stage.name}: is taken: names must differ")
        _check_references(stage, stages, file)
        stages.append(stage)
    return Experiment(name=file.stem, output=output, stages=tuple(stages))


def _stage(
    entry: Any, where: str, commands: Mapping[str, Command], shared: Mapping[str, Any], given: Mapping[str, Any]
) -> Stage:
    tree = _mapping(entry, where)
    _known(tree, ("name", *VERBS), where)
    verbs = [key for key in tree if key != "name"]
    if len(verbs) != 1:
        raise ValueError(f"{where}: has {len(verbs)} verbs: must have one of {', '.join(VERBS)}")
    (verb,) = verbs
    name = tree.get("name", verb)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}: name: {name!r}: must be letters, digits, '-' and '_': it names a folder")
    command, where = commands[verb], f"{where} ({name})"
    options: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for key, value in configs.open_groups(_mapping(tree[verb] or {}, f"{where}: {verb}"), f"{where}: {verb}").items():
        option = key.replace("-", "_")
        if option in options:
            raise ValueError(f"{where}: {verb}: {key}: is given twice: keep one of them")
        if option in OWN or key in OWN:
            raise ValueError(f"{where}: {key}: is `rayface run`'s own: leave it out")
        if option in command.options and option != "overrides":
            options[option] = value
        elif "overrides" in command.options and "." in key:
            keys[key] = value
        else:
            _unknown(key, {*command.options} - {"overrides", *OWN}, f"{where}: {verb}")
    if "overrides" in command.options:
        keys = {**shared, **keys, **given}
        try:
            configs.with_overrides(Config(), keys)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return Stage(name=name, verb=verb, options=_with_lists(options), keys=_with_lists(keys))


def _with_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Several datasets as a list, so that a path that takes a stage's place cannot end it."""
    texts = {key: value for key, value in values.items() if key in ("data", "data.train") and isinstance(value, str)}
    return {**values, **{key: list(parse_paths(key, text)) for key, text in texts.items() if text.startswith("[")}}


def _check_references(stage: Stage, earlier: Sequence[Stage], file: Path) -> None:
    known = {other.name: other for other in earlier}
    for key, names in stage.references().items():
        for name in names:
            where = f"{file}: stage {stage.name}: {key}: ${{{name}}}"
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"before it are {', '.join(known) or 'none'}"
                raise ValueError(f"{where}: is not the name of an earlier stage: {hint}")
            source = known[name]
            makes = VERBS[source.verb].makes
            if source.verb == "prune" and "data" not in source.options:
                makes = "numbers"  # a list of what is kept, and no dataset
            if key in TAKES and makes not in TAKES[key]:
                what = "no dataset without `data`" if source.verb == "prune" else f"{makes}, by {source.verb}"
                raise ValueError(f"{where}: makes {what}: must be a stage that makes {' or '.join(TAKES[key])}")


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _REFERENCE.findall(value)
    elif isinstance(value, list | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _names(part)


def _filled(value: Any, paths: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: paths[found[1]], value)
    if isinstance(value, Mapping):
        return {key: _filled(part, paths) for key, part in value.items()}
    return [_filled(part, paths) for part in value] if isinstance(value, list) else value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {shown(value)}: must be keys and values")
    return value


def _known(tree: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in tree:
        if key not in known:
            _unknown(str(key), known, where)


def _unknown(key: str, known: Collection[str], where: str) -> None:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    raise ValueError(f"{where}: {key}: is not known here: {hint}")
