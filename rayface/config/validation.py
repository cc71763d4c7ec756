"""Checks: every value by its type and the rules of its group, and the keys that a verb requires."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rayface.config.tree import Config, descriptions, to_dict, value_of
from rayface.values import Tree, shown

_ADAPTER = TypeAdapter(Config)
PROTOCOL = "protocol"  # the key before evaluate.protocols


def from_dict(tree: Mapping[str, object]) -> Config:
    """Return the config of a nested dict: the inverse of `to_dict`.

    Raises:
        ValueError: an invalid value.
    """
    values: Tree = dict(tree)
    if PROTOCOL in values.get("evaluate", {}):  # of a run of an older rayface
        evaluate = dict(values["evaluate"])
        protocol = evaluate.pop(PROTOCOL)
        named = {} if protocol == "pairs" else {"protocols": [protocol]}
        values["evaluate"] = {**evaluate, **named}
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def first_error(error: ValidationError) -> str:
    """Return key, value and rule of the first error of a validation."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and "[" not in part)
    text = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], Mapping) and first["type"] == "value_error":  # a rule of the whole group
        return f"{key}: {text}"
    return f"{key}: {shown(first['input'])}: {text[0].lower()}{text[1:]}"


class KeyNotSetError(ValueError):
    """A config key that a verb requires is not set; one line."""

    def __init__(self, key: str, option: str | None = None) -> None:
        super().__init__(f"{key}{f' ({option})' if option else ''}: is not set: {descriptions()[key]}")
        self.key, self.option = key, option

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.option)


def require_keys(config: Config, *keys: str) -> None:
    """Raise KeyNotSetError for the first of the keys that is not set."""
    tree = to_dict(config)
    for key in keys:
        if value_of(tree, key) in (None, []):
            raise KeyNotSetError(key)
