"""The app, shared options of its verbs, and the output of results."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rayface.cli.verbs import VerbGroup
from rayface.credentials import mask
from rayface.progress import Bar
from rayface.values import visible

if TYPE_CHECKING:
    from rayface.training.run_directory import RunDirectory

app = typer.Typer(
    name="rayface",
    cls=VerbGroup,
    help="Very-large-scale face-recognition training on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _local_path(text: str) -> Path:
    from rayface.storage import DataError, on_disk

    try:
        return on_disk(text)
    except DataError as error:
        raise typer.BadParameter(str(error)) from None


def _input_file(text: str) -> Path:
    from rayface.storage import DataError, StorageError, local_copy

    try:
        return local_copy(text)
    except (DataError, StorageError) as error:
        raise typer.BadParameter(str(error)) from None


def file_option(*names: str, help: str) -> Any:
    """Return an option that takes an input file, a path or URI."""
    return typer.Option(*names, parser=_input_file, metavar="FILE", help=help)


def file_argument(*, metavar: str = "FILE", help: str) -> Any:
    """Return an argument that takes an input file, a path or URI."""
    return typer.Argument(parser=_input_file, metavar=metavar, help=help)


def path_option(*names: str, help: str) -> Any:
    """Return an option that takes a local path and refuses URIs."""
    return typer.Option(*names, parser=_local_path, metavar="PATH", help=help)


def flag_option(*names: str, help: str, **settings: Any) -> Any:
    """Return an option without a value; Typer would show a type beside it."""
    return typer.Option(*names, metavar="", help=help, **settings)


def run_argument(help: str) -> Any:
    """Return an argument that takes the directory of a run, a path or URI."""
    return typer.Argument(metavar="RUN", help=help)


def run_directory(text: str) -> "RunDirectory":
    """Return the run directory that an argument names."""
    from rayface.storage import normalise, path_of
    from rayface.training.run_directory import RunDirectory

    return RunDirectory(path_of(normalise(text)))


def _load_plugins(modules: list[str] | None) -> list[str] | None:
    from rayface.plugins import load_plugins

    load_plugins(modules or [])
    return modules


class Terminal:
    """`progress.Display` on stderr; imports rich only when it shows something."""

    def bar(self, name: str, rows: int | None = None, parts: int | None = None) -> AbstractContextManager[Bar]:
        from rayface.progress_bars import progress_bar

        return progress_bar(name, rows, parts)

    def training(self, run: Path, journal: Path, total_steps: int) -> AbstractContextManager[None]:
        from rayface.progress_bars import follow_training

        return follow_training(run, journal, total_steps)


class _Stderr(logging.Handler):
    """Print log records on stderr, with credentials masked."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tell(self.format(record))
        except Exception:
            self.handleError(record)


@contextmanager
def logged_to_stderr() -> Iterator[None]:
    """Print rayface's log on stderr inside the context, from level INFO on, or DEBUG with --verbose."""
    logger, handler = logging.getLogger("rayface"), _Stderr()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _be_verbose(verbose: bool) -> bool:
    logger = logging.getLogger("rayface")
    if verbose:
        logger.setLevel(logging.DEBUG)
        for handler in logger.handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return verbose


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        callback=_load_plugins,
        help="Plugin: Python module to import, on workers too; see docs/plugins.md. Repeat for several.",
    ),
]
Json = Annotated[bool, flag_option("--json", help="Print one line of JSON on stdout instead of a table.")]
Address = Annotated[
    str | None, typer.Option(help="Address of the Ray cluster; default: RAY_ADDRESS, else a local Ray.")
]
Debug = Annotated[bool, flag_option("--debug", help="Show Ray's logs, and tracebacks of errors.")]
Verbose = Annotated[
    bool,
    flag_option("--verbose", help="Show debug messages, with the time and the module of each.", callback=_be_verbose),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same result.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Config keys, dotted.")]
# Typer vendors click or uses the installed one, depending on its version: take the class from Typer's exports.
USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def resume_mode(resume: bool, overrides: list[str] | None) -> tuple[bool | Literal["auto"], list[str]]:
    """Return the value of --resume, and the config keys without it.

    `--resume` takes no value, so the "auto" of `--resume auto` arrives among the config keys.
    """
    keys = list(overrides or [])
    if not (resume and "auto" in keys):
        return resume, keys
    keys.remove("auto")
    return "auto", keys


def cluster_keys(address: str | None, debug: bool) -> dict[str, object]:
    """Return the config keys of the options --address and --debug that are given; without one, its key decides."""
    return {**({"cluster.address": address} if address else {}), **({"cluster.debug": True} if debug else {})}


def tell(text: object) -> None:
    """Print a line on stderr, credentials masked and control characters escaped."""
    typer.echo(visible(mask(str(text))), err=True)


def show_result(title: str, result: Mapping[str, object], as_json: bool) -> None:
    from rayface.display import json_line, result_table

    if as_json:
        json_line(result)
    else:
        # A table would wrap the link, which was shown in a line of its own.
        shown = {name: value for name, value in result.items() if name != "tracking_link"}
        result_table(title, {name.replace("_", " "): _text(value) for name, value in shown.items()})


def show_results(title: str, results: Sequence[object], table: list[dict[str, str]], as_json: bool) -> None:
    """Show several results of one kind: all values as {"results": [...]}, or a table."""
    from rayface.display import columns, json_line

    if as_json:
        json_line({"results": results})
    else:
        columns(title, table)


def _text(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value) or "-"
    return str(value)
