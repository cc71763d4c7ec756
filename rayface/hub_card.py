"""Cards of the Hugging Face Hub: the YAML front matter of README.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml

from rayface.credentials import masked

CARD = "README.md"
_MARK = "---"
_MOST_LEVELS = 100
# Identifiers that the Hub knows; every other licence is `other` with its name.
_LICENCES = frozenset(("apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0", "mit"))


def hub_card(values: Mapping[str, object], licence: str, text: str) -> bytes:
    """Return README.md: front matter of `values` and the licence, then the text in Markdown; credentials masked."""
    known = licence.lower() in _LICENCES
    terms = {"license": licence.lower()} if known else {"license": "other", "license_name": licence or "not stated"}
    front = yaml.safe_dump(masked({**terms, **values}), sort_keys=False, allow_unicode=True)
    return f"{_MARK}\n{front}{_MARK}\n\n{masked(text)}".encode()


def front_matter(card: bytes) -> Mapping[str, object]:
    """Return the front matter of a README.md, empty if it has none.

    Raises:
        ValueError: it is not a mapping in YAML; one line.
    """
    lines = card.decode("utf-8", "replace").removeprefix("\ufeff").splitlines()
    if not lines or lines[0].strip() != _MARK or _MARK not in (ends := [line.strip() for line in lines[1:]]):
        return {}
    text = "\n".join(lines[1 : 1 + ends.index(_MARK)])
    try:
        # The loader in C is ten times as fast; a card may list a million names of classes.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _check(yaml.parse(text, loader))
        found = yaml.load(text, loader)
    except yaml.YAMLError as error:
        raise ValueError(f"its front matter is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, Mapping | None):
        raise ValueError("its front matter is not a mapping")
    return found or {}


def _check(events: Iterable[yaml.Event]) -> None:
    """Refuse what makes the loader in C end the process, or a few lines stand for billions of values."""
    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("its front matter has aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            raise ValueError(f"its front matter has more than {_MOST_LEVELS} levels")
