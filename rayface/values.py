"""Values as text, out of key=value and YAML files: the field that takes a value decides its type.

YAML itself would guess: 0100 is 64, 1:30 is 90, no is false, 2024-01-01 a date. Here only null has a type of its own.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

Tree = dict[str, Any]
"""Keys and values of YAML's types; groups of keys are trees too."""

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
_INTEGER = re.compile(r"[-+]?\d+")
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ITEM = re.compile(r"""\s*(?:("(?:[^"\\]|\\.)*")|'((?:[^']|'')*)'|([^,]*?))\s*(?:,|$)""")


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as text, but for null, and refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"line {line}: {key.value}: is given twice, first in line {lines[key.value]}")
            lines[key.value] = line
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (_NULL, _MERGE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path) -> Tree:
    """Keys and values of a YAML file; scalars as text.

    Raises:
        ValueError: one line with the file; also where a key is given twice.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}: give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not YAML: it is no UTF-8 text") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}: keep one of them") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: must hold keys and values, for example 'head: {{sample_rate: 0.1}}'")
    return tree


def parse_override(text: str) -> tuple[str, str]:
    """Key and value of `key=value`; the value as it stands there.

    Raises:
        ValueError: no such pair.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ValueError(f"{text!r}: must be key=value, for example head.sample_rate=0.1")
    return key.strip(), value


def parse_list(text: str) -> list[str]:
    """Items of `[a, b]`, as they stand there; one that holds a comma in quotes.

    Raises:
        ValueError: no such list.
    """
    inner = text[1:-1].strip()
    if not (text.startswith("[") and text.endswith("]") and len(text) > 1) or inner.endswith(","):
        raise ValueError("must be a list as '[a,b]'")
    items: list[str] = []
    at = 0
    while at < len(inner):
        found = _ITEM.match(inner, at)
        assert found is not None  # anything is a plain item
        quoted, single, plain = found.groups()
        if plain == "":
            raise ValueError("must be a list as '[a,b]': an item is empty")
        items.append(json.loads(quoted) if quoted else plain if single is None else single.replace("''", "'"))
        at = found.end()
    return items


def parse_mapping(text: str) -> Tree:
    """Keys and values of `{a: 1, b: c}`, scalars as text.

    Raises:
        ValueError: no such mapping.
    """
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError:
        tree = None
    if not isinstance(tree, dict):
        raise ValueError("must be keys and values as '{m1: 1, m2: 0.3}'")
    return tree


def parse_number(text: str) -> int | float:
    """A decimal number; an integer where it is written as one.

    Raises:
        ValueError: it is none.
    """
    if _INTEGER.fullmatch(text.strip()):
        return int(text)
    if _FLOAT.fullmatch(text.strip()):
        return float(text)
    raise ValueError("must be a decimal number")


def guess(text: str) -> int | float | bool | str:
    """The value of a field that takes any: a decimal number, true or false, else text."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return parse_number(text)
    except ValueError:
        return text


def shown(value: Any) -> str:
    """A value in a message: a number without quotes, also where it came as text."""
    return value if isinstance(value, str) and not isinstance(guess(value), str) else repr(value)


def to_text(value: Any) -> str:
    """The inverse: what a field that takes `value` reads from key=value."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(_item(part) for part in value)}]"
    if isinstance(value, Mapping) or value is None or isinstance(value, bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _item(value: Any) -> str:
    text = to_text(value)
    return text if text and text.strip() == text and not set(text) & set(",\"'[]") else json.dumps(text)


def is_null(text: Any) -> bool:
    """Whether a text stands for None, where a field takes None."""
    return text in ("", "null", "~")


def optional_fields(kind: Any) -> set[str]:
    """Names of a dataclass's fields that take None."""
    hints = get_type_hints(kind)
    return {
        name for name, hint in hints.items() if get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint)
    }
