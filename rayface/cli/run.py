"""Verb of experiments: run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rayface.cli.common import Address, Debug, Imports, Json, Overrides, Verbose, app, file_argument
from rayface.values import main_rate, percent

# The main number of a stage: the first of these keys that its result has, with the name it is shown by.
_NUMBERS = {
    "faces_out": "images kept",
    "clusters": "clusters",
    "num_rows": "images embedded",
    "images": "images",
    "max_abs_error": "differs from PyTorch by",
    "loss": "loss",
}


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
    from rayface.display import columns, json_line
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
            "time": "skipped" if stage.skipped else f"{stage.seconds:,.0f} s",
            "result": _in_short(stage.result),
        }
        for stage in result.stages
    ]
    columns(f"experiment {result.experiment}, a folder for each stage in {result.output}", table)


def _in_short(result: Mapping[str, Any]) -> str:
    """Return the main number of a stage's result."""
    if result.get("accuracy_mean") is not None:
        return f"accuracy {percent(result['accuracy_mean'])}"
    for key, name in _NUMBERS.items():
        if (value := result.get(key)) is not None:
            return f"{name} {value:{',' if isinstance(value, int) else '.4g'}}"
    far, tar = main_rate(result.get("tar_at_far", {}))
    return "" if tar is None else f"TAR {percent(tar)} at FAR {far}"
