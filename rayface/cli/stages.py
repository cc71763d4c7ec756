"""Verbs generated from the registry of stages: every flag sets a config key, KEY=VALUE sets any key."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from rayface.cli.common import Address, Debug, Imports, Json, Overrides, Verbose, app, cluster_keys, show_result
from rayface.config import Config, KeyNotSetError, descriptions, flat
from rayface.stages import STAGES, StageType
from rayface.values import to_text

_SHARED = {
    "imports": (Imports, None),
    "json": (Json, False),
    "address": (Address, None),
    "verbose": (Verbose, False),
    "debug": (Debug, False),
}


def config_of(verb: str, flags: Mapping[str, Any], overrides: list[str], *, address: str | None, debug: bool) -> Config:
    """Return the config of a command line: flags set their keys, KEY=VALUE any other.

    Raises:
        ValueError: a bad value, or a key that both a flag and a KEY=VALUE set; one line.
    """
    from rayface.config import load
    from rayface.values import parse_override

    given = {STAGES[verb].flags[flag]: value for flag, value in flags.items() if value not in (None, [])}
    keys: dict[str, Any] = dict(parse_override(text) for text in overrides)
    for key in given.keys() & keys.keys():
        raise ValueError(f"{key}: is given twice, as an option and as {key}=VALUE: keep one of them")
    keys = {**given, **keys, **cluster_keys(address, debug)}
    config = load(overrides=keys)
    if verb == "prune" and config.prune.proxy_fraction is not None:
        config = load(config.prune.proxy_preset, overrides=keys)
    return config


def _kind(key: str) -> Any:
    """Return the type of a key's field, without marks and validators."""
    group, _, name = key.partition(".")
    tree = next(type(field.default) for field in fields(Config) if field.name == group)
    return get_type_hints(tree)[name]


def _spelling(flag: str) -> str:
    return f"--{flag.replace('_', '-')}"


def _parameter(flag: str, key: str, *, argument: bool) -> inspect.Parameter:
    """Return the option or argument of a flag; its type and help come from the config key."""
    kind, default = _kind(key), flat(Config())[key]
    kinds = [part for part in get_args(kind) if part is not type(None)] or [kind]
    text = descriptions()[key]
    spelling = _spelling(flag)
    if argument:
        annotation: Any = Annotated[str, typer.Argument(metavar=flag.upper(), help=text)]
        return inspect.Parameter(flag, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
    shown = f"{text.rstrip('.')} (default: {_default(default)})." if default not in (None, [], False) else text
    python = "from_" if flag == "from" else flag
    if kinds == [bool]:
        option = typer.Option(spelling if not default else f"{spelling}/--no-{flag.replace('_', '-')}", help=shown)
        annotation = Annotated[bool | None, option]
    elif get_origin(kinds[0]) is tuple and key not in ("embed.data", "prune.data", "clustering.data", "evaluate.data"):
        annotation = Annotated[list[str] | None, typer.Option(spelling, help=f"{shown} Repeat for several.")]
    else:
        metavar = "|".join(map(str, get_args(kinds[0]))) if get_origin(kinds[0]) is Literal else _METAVARS.get(kinds[0])
        annotation = Annotated[str | None, typer.Option(spelling, metavar=metavar, help=shown)]
    return inspect.Parameter(python, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _default(value: Any) -> str:
    if isinstance(value, list):  # in brackets Rich would take it for markup
        return ", ".join(map(to_text, value))
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 2**20 and value % 2**20 == 0
    return f"{value // 2**20}MiB" if whole else to_text(value)


_METAVARS = {int: "INTEGER", float: "FLOAT", Path: "PATH"}


def _add(verb: str, stage: StageType) -> None:
    def command(**given: Any) -> None:
        own = {flag: given["from_" if flag == "from" else flag] for flag in stage.flags}
        debug, address = given["debug"], given["address"]
        config = config_of(verb, own, given["overrides"] or [], address=address, debug=debug)
        try:
            result = stage.run(config)
        except KeyNotSetError as error:
            options = {key: _spelling(flag) for flag, key in stage.flags.items() if flag not in stage.arguments}
            raise KeyNotSetError(error.key, options.get(error.key)) from error
        output = flat(config)[stage.output]
        show_result(stage.title.format(output), dict(result if given["json"] else stage.shown(result)), given["json"])

    parameters = [_parameter(flag, stage.flags[flag], argument=True) for flag in stage.arguments]
    overrides = inspect.Parameter(
        "overrides", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Overrides
    )
    options = [
        _parameter(flag, key, argument=False) for flag, key in stage.flags.items() if flag not in stage.arguments
    ]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _SHARED.items()
    ]
    command.__signature__ = inspect.Signature([*parameters, overrides, *options, *shared])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in [*parameters, overrides, *options, *shared]}
    command.__doc__ = stage.summary
    app.command(verb)(command)


for _verb, _stage in STAGES.items():
    if _verb != "train":  # it also takes --preset, --config and --resume
        _add(_verb, _stage)
