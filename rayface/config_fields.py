"""Types of config fields, which parse values, and marks, which say what a field decides."""

import ast
import inspect
import itertools
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator

from rayface.sqlite_uri import absolute_sqlite_uri
from rayface.values import Tree, guess, is_null, parse_list, shown
from rayface.yaml_text import parse_mapping

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Value = TypeVar("Value")


class Mark(Enum):
    """What a field decides."""

    FIXED = "a resumed run must have the value that it was started with"
    OPERATIONAL = "does not change a result except by rounding: not part of a stage's fingerprint"
    SHOWN = "is shown by `rayface checkpoint show`"


Fixed = Annotated[Value, Mark.FIXED]
Operational = Annotated[Value, Mark.OPERATIONAL]
Shown = Annotated[Value, Mark.SHOWN]


def marked(tree: Any, mark: Mark) -> list[str]:
    """Return the dotted keys whose field or group carries a mark, in the order of the tree."""
    found: list[str] = []
    hints = get_type_hints(tree, include_extras=True)
    for field in fields(tree):
        own = mark in getattr(hints[field.name], "__metadata__", ())
        if not is_dataclass(field.default) or isinstance(field.default, type):
            found += [field.name] if own else []
            continue
        group = type(field.default)
        inner = [each.name for each in fields(group)] if own else marked(group, mark)
        found += [f"{field.name}.{name}" for name in inner]
    return found


def refuse_ineffective(group: Any, name: str, has_effect: bool, rule: str, *, prefix: str = "") -> None:
    """Raise ValueError for a field that is set but decides nothing with the other fields; its default passes.

    Args:
        group: a config group with plain defaults.
        rule: with what it has an effect, "must be with ...".
        prefix: prefix of the name in the message, such as "evaluate."; validators of groups need none.
    """
    value = getattr(group, name)
    if not has_effect and value != getattr(type(group), name):
        raise ValueError(f"{prefix}{name}: {shown(value)}: has no effect: {rule}, or left out")


def parse_bytes(text: str, *, bare_from: int = 1000) -> int:
    """Parse a number of bytes such as 256MiB, 1GiB or 1000000; MB and GB mean MiB and GiB, as for memory.

    Raises:
        ValueError: anything else; also a number below `bare_from` without a unit, which was meant in another one.
    """
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    factor = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}.get(number[-1:], 1)
    digits = number.rstrip("KMGT")
    if not digits.isdecimal() or int(digits) == 0:
        raise ValueError(f"size {text!r}: must be a number of bytes above 0, for example 256MiB")
    if text.strip().isdecimal() and int(digits) < bare_from:
        raise ValueError(f"size {text!r}: has no unit: give one, for example {int(digits)}MB or {int(digits)}GB")
    return int(digits) * factor


def parse_paths(field: str, text: str) -> tuple[str, ...]:
    """Parse one path, taken literally, or several written as '[a,b]', as for data.train.

    Raises:
        ValueError: brackets that do not hold a list of paths.
    """
    try:
        return _paths(text)
    except ValueError as error:
        raise ValueError(f"{field}: {text!r}: {error}") from error


def _path_text(value: object) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _paths(value: object) -> Any:
    if isinstance(value, os.PathLike):
        return (os.fspath(value),)
    if value is None:  # in the config of a run of an older rayface
        return ()
    if not isinstance(value, str):
        return value
    if value and not value.startswith("["):
        return (value,)
    try:
        return tuple(parse_list(value))
    except ValueError as error:
        raise ValueError(
            "must be a directory, or several as '[a,b]'; write a name that begins with a bracket as './[a'"
        ) from error


def _absolute(path: str) -> str:
    """Return an absolute path, because workers run in other directories; URIs are unchanged."""
    from rayface.storage import normalise  # importing pyarrow is slow

    if not path:
        raise ValueError("must be a path")
    return normalise(path)


def _absolute_on_disk(path: str) -> str:
    """Return an absolute local path, and refuse URIs."""
    from rayface.storage.paths import DISK_RULE

    if "://" in (found := _absolute(path)):
        raise ValueError(DISK_RULE)
    return found


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Bytes = Annotated[Positive, BeforeValidator(lambda v: parse_bytes(v) if isinstance(v, str) else v)]


def _as_list(value: object) -> Any:
    return parse_list(value) if isinstance(value, str) and value.startswith("[") else value


def _alone(value: object) -> Any:
    return (value,) if isinstance(value, str) else value


def _workers(value: object) -> int | tuple[int, int]:
    """Parse a number of workers, or the minimum and the maximum."""
    value = _as_list(value)
    bounds = tuple(value) if isinstance(value, list | tuple) else (value, value)
    bounds = tuple(guess(bound) if isinstance(bound, str) else bound for bound in bounds)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in bounds)
    if len(bounds) != 2 or not whole or not 1 <= bounds[0] <= bounds[1]:
        raise ValueError("must be a number of workers above 0, or [least, most], for example [1, 3]")
    return (bounds[0], bounds[1]) if isinstance(value, list | tuple) else bounds[0]


def as_mapping(value: object) -> Any:
    return parse_mapping(value) if isinstance(value, str) else value


def _guessed(value: object) -> Any:
    """Return a tree of texts with its scalars parsed."""
    if isinstance(value, Mapping):
        return {key: _guessed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_guessed(part) for part in value]
    if isinstance(value, str):
        return None if is_null(value) else guess(value)
    return value


Workers = Annotated[int | tuple[int, int], PlainValidator(_workers)]
PathLike = Annotated[str, BeforeValidator(_path_text)]
"""A path or URI as it is given."""
PathText = Annotated[PathLike, AfterValidator(_absolute)]
"""A path or URI; relative paths are resolved against the current directory when they are parsed."""
DiskPath = Annotated[PathLike, AfterValidator(_absolute_on_disk)]
"""A path on a disk that all nodes share; URIs are refused."""
Paths = Annotated[tuple[PathText, ...], BeforeValidator(_paths)]
DatabaseUri = Annotated[str, AfterValidator(absolute_sqlite_uri)]
Numbers = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_as_list)]
Options = Annotated[Tree, BeforeValidator(as_mapping), AfterValidator(_guessed)]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda v: _alone(_as_list(v)))]
Share = Annotated[float, Field(gt=0, le=1)]
Cosine = Annotated[float, Field(gt=-1, le=1)]
Seed = NotNegative
"""The same seed gives the same result."""


def field_texts(module: ModuleType) -> dict[str, dict[str, str]]:
    """Return the docstring below every field of a module's dataclasses, by class; "" without one."""
    kinds = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)]
    return {
        kind.name: {
            node.target.id: _text(after)
            for node, after in itertools.pairwise([*kind.body, ast.Pass()])
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        for kind in kinds
    }


def _text(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""
