"""Configs from a preset, a file and `key=value`, and to a file."""

import difflib
import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import yaml

from rayface.config.tree import GROUPS, TRAINING, Config, flat, to_dict, value_of
from rayface.config.validation import PROTOCOL, from_dict
from rayface.config_fields import as_mapping
from rayface.credentials import mask, masked
from rayface.files import write_text
from rayface.storage import AnyPath, local_copy
from rayface.values import Tree, is_null, optional_fields, parse_override, shown, to_text
from rayface.yaml_text import read_yaml

_OPTIONAL = {f"{group}.{key}" for group, kind in GROUPS.items() for key in optional_fields(kind)}
_MAPPINGS = {
    "convert.options",
    "evaluate.options",
    "head.margin_options",
    "head.options",
    "prune.options",
}  # keys that hold keys of their own


def load(
    preset: str | None = None, file: str | Path | None = None, overrides: Sequence[str] | Mapping[str, object] = ()
) -> Config:
    """Resolve preset, then YAML file, a path or URI, then overrides; see `with_overrides`.

    Raises:
        ValueError: one line with the key, its value, the rule and the remedy.
    """
    from rayface.presets import preset_values

    config = from_dict(preset_values(preset) if preset else {})
    if file is not None:
        config = _changed(config, read_yaml(local_copy(file)), source=mask(str(file)))
    return with_overrides(config, overrides)


def with_overrides(config: Config, overrides: Sequence[str] | Mapping[str, object]) -> Config:
    """Return a config with keys overridden by `["a.b=c", ...]` or `{"a.b": value}`; texts are parsed by their field.

    Raises:
        ValueError: an unknown key (the nearest known one is named) or an invalid value.
    """
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    return _changed(config, overrides)


def override_texts(overrides: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Return overrides, see `with_overrides`, as `key=value` texts."""
    if isinstance(overrides, Mapping):
        return [f"{key}={to_text(value)}" for key, value in open_groups(overrides).items()]
    return list(overrides)


def open_groups(tree: Mapping[str, object], source: str = "") -> Tree:
    """Flatten groups of keys, `backbone: {width: 2}`, to dotted keys.

    Raises:
        ValueError: a key is given twice, dotted and in its group.
    """
    opened: Tree = {}
    for group, value in tree.items():
        inner = value if group in GROUPS and isinstance(value, Mapping) else None
        for key, part in {group: value}.items() if inner is None else inner.items():
            dotted = f"{key}" if inner is None else f"{group}.{key}"
            if dotted in opened:
                raise ValueError(f"{source and f'{source}: '}{dotted}: is given twice: keep one of them")
            opened[dotted] = part
    return opened


def dump(config: Config, path: AnyPath, groups: Collection[str] = TRAINING) -> None:
    """Write groups of a config as YAML that `load` reads; credentials are masked and must be given again."""
    write_text(path, yaml.safe_dump(masked(to_dict(config, groups)), sort_keys=False))


def _changed(config: Config, changes: Mapping[str, object], source: str = "") -> Config:
    tree = to_dict(config)
    for key, value in open_groups(changes, source).items():
        parent, _, option = key.rpartition(".")
        if parent in _MAPPINGS:
            key, value = parent, {**as_mapping(value_of(tree, parent)), option: value}
        _check_known(key, source)
        if key in GROUPS:
            raise ValueError(f"{key}: {shown(value)}: is a group of keys: set one of them, as {key}.KEY=VALUE")
        group, _, name = key.rpartition(".")
        place = tree[group] if group else tree
        place[name] = None if key in _OPTIONAL and is_null(value) else value
    return from_dict(tree)


@functools.cache
def _known() -> tuple[str, ...]:
    return (*flat(Config()), *GROUPS)


def _check_known(path: str, source: str) -> None:
    known = _known()
    if path in known or path == f"evaluate.{PROTOCOL}":
        return
    last = path.rpartition(".")[2]
    namesakes = [key for key in known if key.rpartition(".")[2] == last]  # in another section
    near = difflib.get_close_matches(path, namesakes or known, n=1, cutoff=0.0 if namesakes else 0.5)
    groups = f": keys are GROUP.KEY, of the groups {', '.join(GROUPS)}: see docs/configuration.md"
    hint = f": did you mean {near[0]}?" if near else groups
    where = f" (in {source})" if source else ""
    raise ValueError(f"{path}: is not a config key{where}{hint}")
