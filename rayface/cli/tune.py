"""Verb of sweeps: tune."""

from pathlib import Path
from typing import Annotated

import typer

from rayface.cli.common import (
    Address,
    Debug,
    Imports,
    Json,
    Overrides,
    Verbose,
    app,
    file_argument,
    flag_option,
    resume_mode,
    show_result,
)

_LABELS = {"fail": "failed"}


@app.command()
def tune(
    file: Annotated[
        Path, file_argument(help="Sweep file, or the name of one that comes with rayface, such as partial_fc.")
    ],
    overrides: Overrides = None,
    preset: Annotated[
        str | None, typer.Option("--preset", "-p", help="A published recipe to start from, instead of the file's.")
    ] = None,
    resume: Annotated[
        bool,
        flag_option(
            "--resume",
            help="Resume the newest sweep of that file, or that of sweep.output; `--resume auto` starts it if there is "
            "none.",
        ),
    ] = False,
    imports: Imports = None,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Search config keys by many training runs with Ray Tune and Optuna, tracked in MLflow."""
    from rayface.tuning.sweep import tune as sweep

    when, keys = resume_mode(resume, overrides)
    result = sweep(
        file,
        keys,
        preset=preset,
        resume=when,
        address=address,
        debug=debug,
    )
    found = result.as_dict()
    show_result("swept", found if json else {_LABELS.get(name, name): value for name, value in found.items()}, json)
