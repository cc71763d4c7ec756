"""Verbs generated from the registry of stages: every flag sets a config key, KEY=VALUE sets any key."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from rayface.cli.common import (
    Address,
    Debug,
    Imports,
    Json,
    Overrides,
    Verbose,
    app,
    cluster_keys,
    flag_option,
    show_result,
)
from rayface.config import Config, KeyNotSetError, descriptions, flat
from rayface.config_fields import Bytes
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

    given = {STAGES[verb].flags[flag]: _given(value) for flag, value in flags.items() if value not in (None, [])}
    keys: dict[str, object] = dict(parse_override(text) for text in overrides)
    for key in given.keys() & keys.keys():
        raise ValueError(f"{key}: is given twice, as an option and as {key}=VALUE: keep one of them")
    keys = {**given, **keys, **cluster_keys(address, debug)}
    config = load(overrides=keys)
    if verb == "prune" and config.prune.proxy_fraction is not None:
        config = load(config.prune.proxy_preset, overrides=keys)
    return config


def _given(value: object) -> Any:
    """Return the value of a flag; a repeatable one that is given once may hold a list in brackets."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _hint(key: str, *, include_extras: bool = False) -> Any:
    group, _, name = key.partition(".")
    tree = next(type(field.default) for field in fields(Config) if field.name == group)
    return get_type_hints(tree, include_extras=include_extras)[name]


def _kind(key: str) -> Any:
    """Return the type of a key's field, without None, marks and validators."""
    kind = _hint(key)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next(part for part in kinds if part is not type(None))


def _spelling(flag: str) -> str:
    return f"--{flag.replace('_', '-')}"


def _argument(flag: str, key: str) -> inspect.Parameter:
    """Return the argument of a flag; its help comes from the config key."""
    annotation = Annotated[str, typer.Argument(metavar=flag.upper(), help=descriptions()[key])]
    return inspect.Parameter(flag, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)


def _option(flag: str, key: str, *, required: bool) -> inspect.Parameter:
    """Return the option of a flag; its type and help come from the config key."""
    kind, default = _kind(key), flat(Config())[key]
    text, spelling = descriptions()[key], _spelling(flag)
    if required:  # not by Typer, as KEY=VALUE sets it too
        text = f"{text.rstrip('.')} (required)."
    elif default not in (None, [], False):
        text = f"{text.rstrip('.')} (default: {_default(default)})."
    if kind is bool:
        option = flag_option(f"{spelling}/--no-{spelling.removeprefix('--')}" if default else spelling, help=text)
        annotation: Any = Annotated[bool | None, option]
    elif get_origin(kind) is tuple:
        annotation = Annotated[list[str] | None, typer.Option(spelling, help=f"{text} Repeat for several.")]
    else:
        metavar = " | ".join(get_args(kind)) if get_origin(kind) is Literal else _METAVARS.get(kind)
        if _READS_SIZES in get_args(_hint(key, include_extras=True)):
            metavar = "SIZE"
        annotation = Annotated[str | None, typer.Option(spelling, metavar=metavar, help=text)]
    python = "from_" if flag == "from" else flag
    return inspect.Parameter(python, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _default(value: Any) -> str:
    if isinstance(value, list):  # in brackets Rich would take it for markup
        return ", ".join(map(to_text, value))
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 2**20 and value % 2**20 == 0
    return f"{value // 2**20}MiB" if whole else to_text(value)


_METAVARS = {int: "INTEGER", float: "FLOAT", Path: "PATH"}
_READS_SIZES = get_args(Bytes)[-1]  # the validator of sizes with a unit


def _report(output: str, name: str) -> dict[str, str]:
    """Return the row of a stage's report, if it has one and has written it: with clustering.stream it has not."""
    from rayface.storage import DataError, StorageError, join, path_of

    path = join(output, name) if name else ""
    try:
        return {"report": path} if path and path_of(path).exists() else {}
    except (DataError, StorageError):  # the job is done, and has said where its output is
        return {}


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
        shown = result if given["json"] else {**stage.shown(result), **_report(output, stage.report)}
        show_result(stage.title.format(output), dict(shown), given["json"])

    parameters = [_argument(flag, stage.flags[flag]) for flag in stage.arguments]
    overrides = inspect.Parameter(
        "overrides", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Overrides
    )
    options = [
        _option(flag, key, required=key in stage.required)
        for flag, key in stage.flags.items()
        if flag not in stage.arguments
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
