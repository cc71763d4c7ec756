"""Verb of experiments: run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rayface.cli.common import Address, Debug, Imports, Json, Overrides, Verbose, app, file_argument, show_results
from rayface.values import percent


@app.command()
def run(
    file: Annotated[
        Path, file_argument(metavar="EXPERIMENT.yaml", help="Experiment file: stages, each a verb with its settings.")
    ],
    overrides: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(help="Folder of the stages, a path or URI; default: the file's, else experiments/FILE."),
    ] = None,
    imports: Imports = None,
    json: Json = False,
    address: Address = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Run the stages of an experiment file in order; skip finished ones."""
    from rayface.config import ClusterConfig
    from rayface.display import json_line
    from rayface.experiment.runner import run as run_experiment

    cluster = ClusterConfig(address=address, debug=debug)
    result = run_experiment(file, overrides or [], out=out, cluster=cluster)
    if json:
        json_line(result.as_dict())
        return
    table = [
        {
            "stage": stage.name,
            "verb": stage.verb,
            "": "skipped" if stage.skipped else f"{stage.seconds:,.0f} s",
            "result": _in_short(stage.result),
            "output": stage.output,
        }
        for stage in result.stages
    ]
    show_results(f"experiment {result.experiment}", [], table, False)


def _in_short(result: Mapping[str, Any]) -> str:
    """Return the main number of a stage's result."""
    for name in ("accuracy_mean", "faces_out", "clusters", "num_rows", "images", "max_abs_error", "loss"):
        if result.get(name) is not None:
            label = name.replace("faces", "images").replace("_", " ")
            return f"accuracy {percent(result[name])}" if name == "accuracy_mean" else f"{label} {result[name]:.4g}"
    return ""
