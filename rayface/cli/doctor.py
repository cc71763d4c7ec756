"""Verb of diagnoses: doctor."""

from typing import TYPE_CHECKING, Annotated

from rayface.cli.common import Debug, Imports, Json, Verbose, app, run_argument, run_directory, tell

if TYPE_CHECKING:
    from rayface.training.doctor.diagnosis import Diagnosis


@app.command()
def doctor(
    run: Annotated[str, run_argument("Run directory, a path or URI, of a finished run or of one that trains.")],
    imports: Imports = None,
    json: Json = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Check whether a run converges as it should; print what is expected and the config key to change."""
    from rayface.display import columns, json_line
    from rayface.training.doctor.diagnosis import diagnose_directory

    directory = run_directory(run)
    diagnosis = diagnose_directory(directory)
    if json:
        json_line({"run": run, **diagnosis.as_dict()})
    else:
        columns(f"{directory.name}, by its first steps", diagnosis.table())
        tell(diagnosis.advice or _without_advice(diagnosis))


def _without_advice(diagnosis: "Diagnosis") -> str:
    unknown = sum(check.verdict == "unknown" for check in diagnosis.checks)
    checks = "1 check needs" if unknown == 1 else f"{unknown} checks need"
    return f"no problem found; {checks} more steps" if unknown else "no problem found"
