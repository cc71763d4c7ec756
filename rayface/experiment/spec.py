"""Experiment files: stages, each with a name, a verb and config keys."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayface import config as configs
from rayface.config import Config
from rayface.stages import INPUT_KINDS, STAGES, StageType
from rayface.storage import join
from rayface.values import Tree, parse_list, parse_override, shown
from rayface.yaml_text import read_yaml

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Stages that produce a dataset only if the key is set.
_DATASET_WITH = {"prune": "prune.data", "cluster": "clustering.data"}
# Names of options that belong to `rayface run`, not to a stage.
RESERVED = ("json", "address", "verbose", "debug", "resume", "help", "import")
# Aliases that a file may use for command-line options.
_SPELLINGS = {"equal_bytes": "bytes", "baselines": "baseline"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A verb with its settings; values may contain ${NAME}, the output of an earlier stage.

    Attributes:
        keys: values by config key, those of the whole experiment first.
        preset, file: base that the keys override.
    """

    name: str
    verb: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    file: str | None = None

    @property
    def type(self) -> StageType:
        return STAGES[self.verb]

    def references(self) -> dict[str, list[str]]:
        """Return the names of the referenced stages, by key."""
        found = {key: [*_names(value)] for key, value in self.keys.items()}
        return {key: names for key, names in found.items() if names}

    def with_paths(self, paths: Mapping[str, str]) -> "Stage":
        """Return the stage with paths in place of the references."""
        return replace(self, keys=_filled(dict(self.keys), paths))


@dataclass(frozen=True, kw_only=True)
class Experiment:
    name: str
    output: str | None
    stages: tuple[Stage, ...]


def is_reference(path: str) -> bool:
    """Return whether a path refers to the output of a stage."""
    return _REFERENCE.search(path) is not None


def load(file: Path, overrides: Sequence[str]) -> Experiment:
    """Read an experiment file; overrides are config keys of every stage.

    Raises:
        ValueError: one line that names the file, and the stage if the error is in one.
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
        stage = _stage(entry, f"{file}: stage {number}", shared, given)
        if stage.name in [earlier.name for earlier in stages]:
            raise ValueError(f"{file}: stage {number}: name: {stage.name}: is taken: names must differ")
        _check_references(stage, stages, file)
        stages.append(stage)
    return Experiment(name=file.stem, output=output, stages=tuple(stages))


def _stage(entry: object, where: str, shared: Mapping[str, object], given: Mapping[str, object]) -> Stage:
    tree = _mapping(entry, where)
    _known(tree, ("name", *STAGES), where)
    verbs = [key for key in tree if key != "name"]
    if len(verbs) != 1:
        raise ValueError(f"{where}: has {len(verbs)} verbs: must have one of {', '.join(STAGES)}")
    (verb,) = verbs
    name = tree.get("name", verb)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{where}: name: {name!r}: must be letters, digits, '-' and '_': it names a folder")
    where = f"{where} ({name})"
    opened = configs.open_groups(_mapping(tree[verb] or {}, f"{where}: {verb}"), f"{where}: {verb}")
    own: Tree = {}
    for written, value in opened.items():
        key = _key_of(written, verb, where)
        if key in own:
            raise ValueError(f"{where}: {verb}: {written}: is given twice: keep one of them")
        own[key] = value
    bases = {key: own.pop(key, None) for key in ("preset", "config")}
    for key, value in bases.items():
        if not (value is None or isinstance(value, str)):
            raise ValueError(f"{where}: {verb}: {key}: {shown(value)}: must be the name of one preset or file")
    keys = {**shared, **own, **given}
    try:
        configs.with_overrides(Config(), keys)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Stage(name=name, verb=verb, keys=_with_lists(keys), preset=bases["preset"], file=bases["config"])


def _key_of(written: str, verb: str, where: str) -> str:
    """Return the config key of a name in a stage: a full key, an option of the verb, or a key of the verb's group."""
    stage, name = STAGES[verb], written.replace("-", "_")
    key = stage.flags.get(_SPELLINGS.get(name, name), written)
    if name in RESERVED or key == stage.output:
        raise ValueError(f"{where}: {written}: is `rayface run`'s own: leave it out")
    if "." in key or key == "name" or (verb == "train" and name in ("preset", "config")):
        return key
    own = [known.partition(".")[2] for known in configs.flat(Config()) if known.startswith(f"{verb}.")]
    if name in own:
        return f"{verb}.{name}"
    return _unknown(written, {*stage.flags, *own}, f"{where}: {verb}")


def _with_lists(keys: Mapping[str, object]) -> Tree:
    """Parse texts of several datasets into lists before references are replaced by paths, which may hold commas."""
    texts = {
        key: value
        for key, value in keys.items()
        if INPUT_KINDS.get(key) == ("data",) and isinstance(value, str) and value.startswith("[")
    }
    return {**keys, **{key: parse_list(text) for key, text in texts.items()}}


def _check_references(stage: Stage, earlier: Sequence[Stage], file: Path) -> None:
    known = {other.name: other for other in earlier}
    for key, names in stage.references().items():
        for name in names:
            where = f"{file}: stage {stage.name}: {key}: ${{{name}}}"
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"earlier stages are {', '.join(known) or 'none'}"
                raise ValueError(f"{where}: is not the name of an earlier stage: {hint}")
            source = known[name]
            kind = source.type.output_kind
            without = _DATASET_WITH.get(source.verb, "") not in ("", *source.keys)
            if without:
                kind = "numbers"  # a list of images, not a dataset
            if key in INPUT_KINDS and kind not in INPUT_KINDS[key]:
                what = "no dataset without `data`" if without else f"{kind}, by {source.verb}"
                wanted = " or ".join(INPUT_KINDS[key])
                raise ValueError(f"{where}: produces {what}: must be a stage that produces {wanted}")


def _names(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from _REFERENCE.findall(value)
    elif isinstance(value, list | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _names(part)


def _filled(value: object, paths: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        if inside := re.fullmatch(rf"{_REFERENCE.pattern}/(.+)", value):  # the query of a URI stays last
            return join(paths[inside[1]], inside[2])
        return _REFERENCE.sub(lambda found: paths[found[1]], value)
    if isinstance(value, Mapping):
        return {key: _filled(part, paths) for key, part in value.items()}
    return [_filled(part, paths) for part in value] if isinstance(value, list) else value


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: {shown(value)}: must be keys and values")
    return value


def _known(tree: Mapping[str, object], known: Collection[str], where: str) -> None:
    for key in tree:
        if key not in known:
            _unknown(str(key), known, where)


def _unknown(key: str, known: Collection[str], where: str) -> Any:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
    raise ValueError(f"{where}: {key}: is not known here: {hint}")
