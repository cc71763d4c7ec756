"""Plugins: user modules, given by `--import` or entry points, that add classes to the registries.

A plugin adds its classes to HEADS, MARGINS, BACKBONES, SOURCES, TARGETS, SCHEDULES, METHODS or PROTOCOLS
when it is imported.
"""

import importlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "rayface.plugins"
_VARIABLE = "RAYFACE_PLUGINS"  # passes the names of the modules to Ray's workers, as a JSON list
_loaded: list[str] = []


def load_plugins(modules: Sequence[str] = ()) -> None:
    """Import modules and all entry points in the group "rayface.plugins", here and in workers of a later Ray session.

    Args:
        modules: names of modules, in the working directory or installed.

    Raises:
        ValueError: a module cannot be imported; one line.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for point in _entry_points():
        _import(point.module, f"entry point {point.name} of {GROUP}")
    for name in modules:
        _import(name, "plugin")
    _loaded.extend(name for name in modules if name not in _loaded)


def ensure_loaded() -> None:
    """Load the driver's plugins in a Ray worker; the registries call it before they look up a name.

    Not at the start of a worker: data readers do not need PyTorch, which plugins import.

    Raises:
        ValueError: a module cannot be imported; one line.
    """
    load_plugins([name for name in json.loads(os.environ.get(_VARIABLE, "[]")) if name not in _loaded])


def resume_command(*words: str) -> str:
    """Return a command line of rayface, for messages, that imports the modules of this process's --import."""
    return shlex.join(["rayface", *words, *(part for name in _loaded for part in ("--import", name))])


def runtime_env() -> dict[str, object] | None:
    """Return the runtime environment that passes the plugins to Ray's workers; None without plugins."""
    return {"env_vars": {_VARIABLE: json.dumps(_loaded)}} if _loaded else None


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: point.name))


def _import(name: str, source: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            reason = "no such module in the working directory or installed: give its import name"
        raise ValueError(f"{source}: {name}: cannot be imported: {reason}") from error
