"""Verb of the live view: watch."""

import time
from typing import Annotated

import typer

from rayface.cli.common import Debug, Json, Verbose, app, flag_option, run_argument, run_directory


@app.command()
def watch(
    run: Annotated[str, run_argument("Run directory, a path or URI, of a finished run or of one that trains.")],
    once: Annotated[bool, flag_option("--once", help="Print the run as it is now, and exit.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Refresh interval in seconds.")] = 2.0,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show a run that any process trains: loss, rate, images/s, time left, accuracy, faults; ends when it ends."""
    from dataclasses import asdict

    from rayface.display import json_line, live_table, result_table
    from rayface.training.run_view import RunWatcher

    directory = run_directory(run)
    watcher = RunWatcher(run=directory, tail=directory.journal_tail())
    view = watcher.read()
    if not (once or json or view.ended):
        with live_table() as show:
            while not view.ended:
                show(view.name, view.rows())
                time.sleep(every)
                view = watcher.read()
    if json:
        json_line(asdict(view))
    else:
        result_table(view.name, view.rows())
