"""Read YAML with scalars as text: the config field decides the type of a value, see `values`."""

import itertools
from pathlib import Path
from typing import Any

import yaml

from rayface.values import Tree

_MOST_VALUES = 100_000  # of a YAML file; a few lines of aliases can stand for billions
_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML loader that reads plain scalars as text, except null, and refuses duplicate keys and too many values."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[Any, int] = {}  # of a node, with what aliases in it stand for

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias, line = self.check_event(yaml.AliasEvent), self.peek_event().start_mark.line + 1
        node: Any = super().compose_node(parent, index)
        if not is_alias:
            inner = [] if isinstance(node, yaml.ScalarNode) else node.value
            parts = itertools.chain.from_iterable(inner) if isinstance(node, yaml.MappingNode) else inner
            self._sizes[node] = 1 + sum(self._sizes[part] for part in parts)
        if node not in self._sizes:
            raise ValueError(f"line {line}: is an alias of what it is in: write the values out")
        if self._sizes[node] > _MOST_VALUES:
            raise ValueError(f"line {line}: has more than {_MOST_VALUES:,} values, with aliases: write fewer")
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(
                    f"line {line}: {key.value}: is given twice, first in line {lines[key.value]}: keep one of them"
                )
            lines[key.value] = line
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> Tree:
    """Return the keys and values of a YAML file, with scalars as text.

    Raises:
        ValueError: one line with the file; also for duplicate keys and too many values.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}: give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not YAML: it is not UTF-8 text") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply: write fewer levels") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: must hold keys and values, for example 'head: {{sample_rate: 0.1}}'")
    return tree


def parse_mapping(text: str) -> Tree:
    """Return the keys and values of `{a: 1, b: c}`, with scalars as text.

    Raises:
        ValueError: it is not a mapping.
    """
    try:
        tree = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise ValueError("must be keys and values as '{m1: 1, m2: 0.3}'")
    return tree
