"""Selection methods of `rayface prune`, and METHODS, their registry for plugins."""

from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rayface.config import PruneConfig
from rayface.curate.identities import Selection
from rayface.curate.prune.dataset_stats import DatasetStats
from rayface.curate.prune.methods.diffprob import DiffProb
from rayface.curate.prune.methods.face_nms import FaceNMS
from rayface.curate.prune.methods.herding import Herding
from rayface.curate.prune.methods.random import Random
from rayface.curate.prune.selection_method import Images, SelectionMethod, ThresholdMethod
from rayface.plugins import ensure_loaded

__all__ = [
    "METHODS",
    "DatasetStats",
    "DiffProb",
    "FaceNMS",
    "Herding",
    "Images",
    "Random",
    "Selection",
    "SelectionMethod",
    "ThresholdMethod",
    "baseline_settings",
    "build_method",
    "check_methods",
]

METHODS: dict[str, type[SelectionMethod[Any]]] = {
    "face_nms": FaceNMS,
    "random": Random,
    "herding": Herding,
    "diffprob": DiffProb,
}


def build_method(settings: PruneConfig) -> SelectionMethod[Any]:
    """Return the method `prune.method` with its settings.

    Raises:
        ValueError: an unknown name, or a setting that the method cannot work with.
    """
    method = _method_class("prune.method", settings.method).from_settings(settings)
    for name in settings.options:
        if name not in method.options:
            known = ", ".join(sorted(method.options)) or "none"
            raise ValueError(f"prune.options.{name}: {settings.method} has no such setting: it has {known}")
    if not settings.options:
        return method
    try:
        return TypeAdapter(type(method)).validate_python({**vars(method), **settings.options})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["prune.options", *map(str, first["loc"])])
        raise ValueError(f"{where}: {first['input']!r}: {first['msg']}") from error


def baseline_settings(settings: PruneConfig, name: str, keep: float) -> PruneConfig:
    """Return the settings of a baseline: the same share as the core set, and no options."""
    return replace(settings, method=name, threshold=None, keep=keep, options={})


def check_methods(settings: PruneConfig) -> None:
    """Raise ValueError, one line, for settings of `prune` that its method or a baseline cannot work with."""
    used = {_method_class("prune.method", settings.method)}
    used |= {_method_class("prune.baselines", name) for name in settings.baselines}
    for key in sorted(frozenset().union(*(method.keys for method in METHODS.values()))):
        if getattr(settings, key) != getattr(PruneConfig(), key) and not any(key in method.keys for method in used):
            names = ", ".join(name for name, method in METHODS.items() if key in method.keys)
            raise ValueError(
                f"prune.{key}: only {names} uses it: add that to prune.method or prune.baselines, or leave it out"
            )
    build_method(settings)
    for name in settings.baselines:
        build_method(baseline_settings(settings, name, keep=1.0))  # its share is known once the core set is selected


def _method_class(key: str, name: str) -> type[SelectionMethod[Any]]:
    ensure_loaded()
    if name not in METHODS:
        raise ValueError(f"{key}: {name!r}: must be one of {', '.join(METHODS)}, or registered by a plugin")
    return METHODS[name]
