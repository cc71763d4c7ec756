"""All verbs, and how one is run: exit code, and one line that says why."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from rayface import __version__
from rayface.cli import (  # noqa: F401  # they add their verbs
    bench,
    bench_all_vs_all,
    bench_curation,
    bench_heads,
    benchmark,
    checkpoint,
    compare,
    data,
    doctor,
    models,
    run,
    stages,
    submit,
    training,
    tune,
    watch,
)
from rayface.cli.common import USAGE_ERROR, Terminal, app, flag_option, logged_to_stderr, tell
from rayface.config import Config, flat
from rayface.interrupts import interrupt_in, terminable
from rayface.progress import shown_on
from rayface.training.recovery.interrupt import exit_code_of


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, flag_option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def run_command_line() -> None:
    """Run the verb of this process's arguments, and exit."""
    code, message = _outcome(sys.argv[1:])
    # The error and its frames are released here, which also drops work still queued in pools.
    if message:
        tell(f"rayface: {message}")
    sys.exit(code)


def _outcome(arguments: Sequence[str]) -> tuple[int, str]:
    """Run a verb; return the exit code and, on failure, one line that says why."""
    command = typer.main.get_command(app)
    try:
        # Not command.main: it treats every interrupt as Ctrl-C, and exits without a message.
        with (
            terminable(),
            logged_to_stderr(),
            shown_on(Terminal()),
            command.make_context("rayface", list(arguments)) as context,
        ):
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code, ""
    except (Exception, KeyboardInterrupt) as error:
        return _said_of(error, debug="--debug" in arguments)
    return 0, ""


def _meant_key(error: BaseException) -> str:
    """Return how a config key is given, for an option that does not exist but has the name of one.

    `--resume=auto` gets the form without the equals sign.
    """
    name = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
    if name == "resume":
        return " Write --resume auto." if type(error).__name__ == "BadOptionUsage" else ""
    keys = [key for key in flat(Config()) if name and (key == name or key.endswith(f".{name}"))]
    return f": config keys are given without dashes: {' or '.join(f'{key}=VALUE' for key in keys)}" if keys else ""


def _help_of(error: BaseException) -> str:
    """Return where to read about an argument that is missing."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ != "MissingParameter" or context is None:
        return ""
    return f" See {context.command_path} --help."


def _said_of(error: BaseException, *, debug: bool) -> tuple[int, str]:
    """Return the exit code and the message of an error."""
    if isinstance(error, USAGE_ERROR):
        return 2, " ".join(error.format_message().split()) + _meant_key(error) + _help_of(error)
    if isinstance(error, BrokenPipeError):
        # The reader of stdout has closed it; the flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1, ""
    if debug:
        tell("".join(traceback.format_exception(error)))
    if "ray" in sys.modules:
        from rayface.ray_errors import root_cause

        error = root_cause(error)
    if not hasattr(error, "exit_code") and (interrupt := interrupt_in(error)):
        code = exit_code_of(interrupt)
        return (
            code,
            f"{'terminated' if code == 143 else 'interrupted'}: run the same command again to resume or to start over",
        )
    text = " ".join(str(error).split()) or "no message"
    if not isinstance(error, ValueError | RuntimeError):
        text = f"{type(error).__name__}: {text[:2000]} (--debug shows more)"
    return getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1), text
