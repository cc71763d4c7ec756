"""Verb of clusters: submit."""

import json as json_module
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rayface.cli.common import Debug, Json, Verbose, app, flag_option, show_result, tell

_ON_JOBS = ("status", "logs", "stop")


@app.command(context_settings={"allow_interspersed_args": False})
def submit(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="VERB [ARGUMENT]", help="Verb to run; or status, logs or stop, and the id of a job."),
    ],
    address: Annotated[
        str | None,
        typer.Option(help="Job server, http://HOST:8265; default: RAY_ADDRESS, else http://127.0.0.1:8265."),
    ] = None,
    wait: Annotated[
        bool, flag_option("--wait/--no-wait", help="Follow the log and return the job's exit code.")
    ] = True,
    python: Annotated[str, typer.Option(help="Python executable of the cluster's nodes.")] = "python",
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run a verb as a Ray job on a cluster; Ctrl-C stops it. This version of rayface and named files are sent."""
    from rayface import submit as jobs
    from rayface.job_package import package

    if json and "--json" not in arguments:
        arguments = [*arguments, "--json"]
    as_json = "--json" in arguments
    verb, rest = arguments[0], [argument for argument in arguments[1:] if argument != "--json"]
    if verb in _ON_JOBS:
        if len(rest) != 1:
            raise ValueError(f"submit {verb}: must be followed by the id of one job")
        client = jobs.connect(address, debug=debug)
        if verb == "logs":
            raise typer.Exit(_followed(client, str(jobs.status(client, rest[0])["job"]), _Writer(False)))
        result = (
            jobs.status(client, rest[0])
            if verb == "status"
            else {"job": rest[0], "stopped": jobs.stop(client, rest[0])}
        )
        show_result(rest[0], result, as_json)
        return
    if verb == "submit" or verb not in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        raise ValueError(f"submit: {verb}: must be a verb of rayface other than submit, or {', '.join(_ON_JOBS)}")
    wanted = package(arguments, folder=Path.cwd(), environment=os.environ, python=python)
    client = jobs.connect(address, debug=debug)
    if wanted.kept_back:
        tell(f"not sent, because they may hold secrets: {', '.join(wanted.kept_back)}: set them on the cluster's nodes")
    job = jobs.submit(client, wanted, verb)
    tell(f"submitted {job}; rayface submit status|logs|stop {job}")
    if not wait:
        show_result("submitted", {"job": job}, as_json)
        return
    raise typer.Exit(_followed(client, job, _Writer(as_json)))


def _followed(client: object, job: str, writer: "_Writer") -> int:
    from rayface.submit import follow

    try:
        return follow(client, job, writer)
    finally:
        writer.finish()


class _Writer:
    """Writes a job's log to stdout; with --json, only the lines that are JSON, and all others to stderr."""

    def __init__(self, as_json: bool) -> None:
        self._as_json, self._begun = as_json, ""

    def __call__(self, text: str) -> None:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._write(f"{line}\n", line)

    def finish(self) -> None:
        """Write what is left of a log whose last line does not end."""
        self._write(self._begun, self._begun)
        self._begun = ""

    def _write(self, text: str, line: str) -> None:
        print(text, end="", file=sys.stdout if not self._as_json or _is_json(line) else sys.stderr, flush=True)


def _is_json(line: str) -> bool:
    try:
        return isinstance(json_module.loads(line), dict)
    except ValueError:
        return False
