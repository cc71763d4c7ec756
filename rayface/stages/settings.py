"""Compare the settings of a stage with stored ones, also those of an earlier version of rayface."""

from collections.abc import Mapping
from typing import Any

_FORMER_DEFAULT = ("head.compute_dtype", "fp32", "auto")  # key, default of earlier versions, default
_SET_BY_FORMER_PRESETS = ("head.margin_value", "head.scale")  # to their defaults


def changed_keys(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return the keys whose values differ; keys in only one of them are of another version of rayface.

    An unset head.margin_value or head.scale equals the default that it resolves to.
    """
    return [key for key in now if key in before and _differs(key, before, now)]


def changed_key(before: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """Return the first of the changed keys; see `changed_keys`."""
    return next(iter(changed_keys(before, now)), None)


def _differs(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    was, value = before[key], now[key]
    if was == value or (key, was, value) == _FORMER_DEFAULT:
        return False
    if key not in _SET_BY_FORMER_PRESETS or None not in (was, value):
        return True
    from rayface.heads.from_config import margin_defaults  # PyTorch takes a second to import

    return margin_defaults(now["head.name"], now["head.margin"]).get(key) != (was if value is None else value)
