"""The command line: one verb each, no logic.

Exit codes: 0 done, 1 failed while running, 2 the input is wrong, 130 interrupted, 143 terminated.
"""

import sys
import traceback
from typing import Annotated

import typer

from rayface import __version__
from rayface.cli import bench, checkpoint, curate, data, models, run, training, tune  # noqa: F401  # they add their verbs
from rayface.cli.common import USAGE_ERROR, app


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; errors are one line on stderr unless --debug asks for the traceback."""
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _end("interrupted", 130)
    except USAGE_ERROR as error:
        _end(" ".join(error.format_message().split()), 2)
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        text = " ".join(str(error).split()) or "no message"
        if not isinstance(error, ValueError | RuntimeError):
            text = f"{type(error).__name__}: {text[:2000]} (--debug shows more)"
        _end(text, getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1))
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> None:
    typer.echo(f"rayface: {message}", err=True)
    sys.exit(code)
