"""Parse values from key=value and YAML files as text: the config field decides the type of its value.

YAML itself guesses types: 0100 is 64, 1:30 is 90, no is false, 2024-01-01 is a date. Here only null is recognised.
"""

import json
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

Tree = dict[str, Any]
"""Keys and values of YAML types; groups of keys are nested trees."""

_DIRECTION_MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_UNSEEN = {
    ord(sign): sign.encode("unicode_escape").decode()
    for sign in (*(chr(code) for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"), *_DIRECTION_MARKS)
}
_LONGEST_SHOWN = 200  # characters of a value in a message
_INTEGER = re.compile(r"[-+]?\d+")
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_ITEM = re.compile(r"""\s*(?:("(?:[^"\\]|\\.)*")|'((?:[^']|'')*)'|([^,]*?))\s*(?:,|$)""")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 image, 2,000 images, 3 identities."""
    plural = {"identity": "identities", "class": "classes"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


def parse_override(text: str) -> tuple[str, str]:
    """Return key and value of `key=value`, with the value as text.

    Raises:
        ValueError: it is not key=value.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ValueError(f"{text!r}: must be key=value, for example head.sample_rate=0.1")
    return key.strip(), value


def parse_list(text: str) -> list[str]:
    """Return the items of `[a, b]` as text; an item that contains a comma must be quoted.

    Raises:
        ValueError: it is not a list.
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


def parse_number(text: str) -> int | float:
    """Parse a decimal number; an int if it is written as an integer.

    Raises:
        ValueError: it is not a number.
    """
    if _INTEGER.fullmatch(text.strip()):
        return int(text)
    if _FLOAT.fullmatch(text.strip()):
        return float(text)
    raise ValueError("must be a decimal number")


def guess(text: str) -> int | float | bool | str:
    """Parse the value of a field of any type: a decimal number, true or false in any case, else text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return parse_number(text)
    except ValueError:
        return text


def visible(text: str) -> str:
    """Return text with escapes in place of control characters and direction marks.

    Names of images and identities come from strangers: a terminal would obey the control characters, and direction
    marks would reorder the text beside them.
    """
    return text.translate(_UNSEEN)


def shown(value: object) -> str:
    """Format a value for a message: numbers without quotes, even if given as text; long values are cut."""
    text = value if isinstance(value, str) and not isinstance(guess(value), str) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def to_text(value: object) -> str:
    """Return the text from which a field parses `value`: the inverse of parsing."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return f"[{', '.join(_item(part) for part in value)}]"
    if isinstance(value, Mapping) or value is None or isinstance(value, bool):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _item(value: object) -> str:
    text = to_text(value)
    return text if text and text.strip() == text and not set(text) & set(",\"'[]") else json.dumps(text)


def is_null(text: object) -> bool:
    """Return whether a text means None for a field that accepts None."""
    return text in ("", "null", "~")


def optional_fields(kind: object) -> set[str]:
    """Return the names of a dataclass's fields that accept None."""
    hints = get_type_hints(kind)
    return {
        name for name, hint in hints.items() if get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint)
    }


def main_rate(tar_at_far: Mapping[str, float | None]) -> tuple[str, float | None]:
    """Return the FAR and TAR to show first: FAR 1e-4, or the lowest one that was measured; ("", None) without any."""
    measured = {far: tar for far, tar in tar_at_far.items() if tar is not None}
    far = "1e-04" if "1e-04" in measured else min(measured, key=float, default="")
    return far, measured.get(far)


def percent(share: float) -> str:
    """Return a share in percent, for people: 57.50%."""
    return f"{share:.2%}"


def percent_interval(interval: Sequence[float | None]) -> str:
    """Return an interval of a share, for people; "-" if a bound is unknown."""
    low, high = interval
    return "-" if low is None or high is None else f"95% interval {percent(low)} to {percent(high)}"
