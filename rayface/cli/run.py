"""Verb of experiments: run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from rayface.cli.common import (
    USAGE_ERROR,
    Address,
    Debug,
    Imports,
    Json,
    Overrides,
    Verbose,
    app,
    kept_results,
    path_argument,
    show_results,
)
from rayface.values import to_text


@app.command()
def run(
    file: Annotated[Path, path_argument(metavar="EXPERIMENT.yaml", help="Stages, each a verb with its settings.")],
    overrides: Overrides = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the stages; default: the file's, else experiments/FILE.")
    ] = None,
    imports: Imports = None,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run verbs one after the other, from a file; what is finished is skipped."""
    from rayface.display import json_line
    from rayface.experiment.runner import run as run_experiment
    from rayface.experiment.verbs import VERBS

    commands = {verb: _Verb(verb) for verb in VERBS}
    result = run_experiment(file, overrides or [], commands, out=out, address=address, debug=debug)
    if json:
        json_line(result)
        return
    table = [
        {
            "stage": stage["name"],
            "verb": stage["verb"],
            "": "skipped" if stage["skipped"] else f"{stage['seconds']:,.0f} s",
            "result": _in_short(stage["result"]),
            "output": stage["output"],
        }
        for stage in result["stages"]
    ]
    show_results(f"experiment {result['experiment']}", result["stages"], table, False)


def _in_short(result: Mapping[str, Any]) -> str:
    """The number that a stage is asked for first."""
    for name in ("accuracy_mean", "faces_out", "num_rows", "images", "max_abs_error", "loss"):
        if result.get(name) is not None:
            return f"{name.replace('_', ' ')} {result[name]:.4g}"
    return ""


class _Verb:
    """A verb as the command line has it: its own parser reads the settings, its own function does the work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._command: Any = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        self._parameters = {_spelling(parameter): parameter for parameter in self._command.params}
        self.options = set(self._parameters)

    def arguments(self, options: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
        words: list[str] = []
        for name, value in options.items():
            if self._parameters[name].param_type_name == "option":
                words += _option(self._parameters[name], value)
        arguments = [name for name, parameter in self._parameters.items() if parameter.param_type_name == "argument"]
        given = [str(options[name]) for name in arguments if name in options]
        return [*words, "--", *given, *(overrides if "overrides" in self.options else ())]

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        try:
            return dict(self._command.make_context(self._name, list(arguments)).params)
        except USAGE_ERROR as error:
            raise ValueError(" ".join(error.format_message().split())) from error

    def call(self, arguments: Sequence[str]) -> dict[str, Any]:
        context = self._command.make_context(self._name, ["--json", *arguments])
        with kept_results() as kept, context:
            self._command.invoke(context)
        return kept[-1]


def _spelling(parameter: Any) -> str:
    """Its name at the command line, with _ for -."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return str(_long(parameter)).removeprefix("--").replace("-", "_")


def _long(parameter: Any) -> str:
    return next(name for name in parameter.opts if name.startswith("--"))


def _option(parameter: Any, value: Any) -> list[str]:
    name = _long(parameter)
    if value is None:
        return []
    if parameter.is_flag:
        try:
            return [name] if TypeAdapter(bool).validate_python(value) else parameter.secondary_opts[:1]
        except ValidationError as error:
            raise ValueError(f"{name}: {value!r}: must be true or false") from error
    if parameter.multiple:
        return [f"{name}={each}" for each in (value if isinstance(value, list) else [value])]
    return [f"{name}={to_text(value)}"]
