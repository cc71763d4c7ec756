"""Verb of diagnoses: doctor."""

from pathlib import Path
from typing import Annotated

from rayface.cli.common import Debug, Imports, Json, Verbose, app, path_argument, tell


@app.command()
def doctor(
    run: Annotated[Path, path_argument(metavar="RUN", help="Run directory, of a finished run or of one that trains.")],
    imports: Imports = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Check whether a run converges as it should; print what is expected and the config key to change."""
    from rayface.display import columns, json_line
    from rayface.training.doctor.diagnosis import diagnose_directory
    from rayface.training.run_directory import RunDirectory

    diagnosis = diagnose_directory(RunDirectory(run))
    if json:
        json_line({"run": str(run), **diagnosis.as_dict()})
    else:
        columns(f"{run.name}, by its first steps", diagnosis.table())
        tell(diagnosis.advice or "nothing is wrong")
