"""The prune stage in front of a trial's training: its settings as text, typed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from rayface import config as configs
from rayface.tuning.search_space import Space
from rayface.values import is_null, optional_fields, parse_list

if TYPE_CHECKING:
    from rayface.curate.prune.settings import PruneSettings

PRUNE = "prune."  # in front of a parameter's name
_PATHS = ("embeddings", "head")


def check_prune(prune: Mapping[str, Any] | None, space: Space) -> None:
    """Refuse settings of a sweep's prune stage that cannot be, searched ones among them.

    Raises:
        ValueError: one line.
    """
    searched = {key.removeprefix(PRUNE): p.edges() for key, p in space.items() if key.startswith(PRUNE)}
    if prune is None and not searched:
        return
    if not (prune or {}).get("embeddings"):
        raise ValueError("prune.embeddings: is not set: name the folder that `rayface embed` wrote of data.train")
    first = {name: edges[0] for name, edges in searched.items()}
    for name, edges in searched.items():
        for edge in edges:
            prune_settings({**(prune or {}), **first, name: edge})
    if not searched:
        prune_settings(prune or {})


def prune_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a prune stage as their fields have them, paths absolute.

    Raises:
        ValueError: an unknown name, or a value of another type.
    """
    from rayface.curate.prune.settings import PruneSettings

    read = {"baselines": parse_list, "block_size": configs.parse_bytes}
    optional = optional_fields(PruneSettings)
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name in _PATHS and not is_null(value):
            value = TypeAdapter(configs.PathText).validate_python(value)
        elif name in optional and is_null(value):
            value = None
        elif name in read and isinstance(value, str):
            value = read[name](value)
        found[name] = value
    settings = {name: value for name, value in found.items() if name != "embeddings"}
    if unknown := settings.keys() - {f.name for f in fields(PruneSettings)}:
        raise ValueError(f"prune: {sorted(unknown)[0]}: must be settings of `rayface prune`")
    try:
        typed = TypeAdapter(PruneSettings).validate_python(settings)
    except ValidationError as error:
        raise ValueError(f"prune.{configs.first_error(error)}") from error
    plain = asdict(typed)
    return {name: plain.get(name, found[name]) for name in found}


def prune_settings(values: Mapping[str, Any]) -> PruneSettings:
    """What `rayface prune` calls them.

    Raises:
        ValueError: an unknown name, or a value that breaks its rule.
    """
    from rayface.curate.prune.settings import PruneSettings, check_settings

    given = {key: value for key, value in prune_values(values).items() if key != "embeddings"}
    settings = TypeAdapter(PruneSettings).validate_python({"baselines": (), **given})
    check_settings(settings)
    return settings
