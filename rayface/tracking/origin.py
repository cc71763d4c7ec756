"""Where a tracked job comes from: user, command, version; its name, and how to look at its run in MLflow."""

import getpass
import os
import shlex
import shutil
import sys
from pathlib import Path

from rayface.credentials import mask
from rayface.sqlite_uri import sqlite_path, sqlite_uri
from rayface.version import VERSION, commit

_PORT = "http://127.0.0.1:5000"  # where `mlflow ui` serves
_COLUMNS = 80
_ROOTS = ("runs", "sweeps", "experiments", "jobs")  # folders that say nothing about a job


def origin() -> dict[str, str]:
    """Return the tags that say who started a job, by which command and which version of rayface."""
    known, command = commit(), _command()
    return {
        "mlflow.note.content": f"```bash\n{command}\n```",  # the text at the top of a run's page
        "mlflow.user": _user(),
        "mlflow.source.name": command,
        "mlflow.source.type": "JOB" if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") else "LOCAL",
        "rayface_version": VERSION,
        "git_commit": known,
        **({"mlflow.source.git.commit": known.removesuffix("-dirty")} if known != "unknown" else {}),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _command() -> str:
    program = Path(sys.argv[0])
    name = "rayface" if program.parts[-2:] == ("cli", "__main__.py") or program.name == "rayface" else program.name
    return mask(shlex.join([name or "python", *sys.argv[1:]]))


def job_name(folder: Path) -> str:
    """Return the name of the job in a folder: its path in the project, without a first folder of _ROOTS."""
    folder = folder.absolute()
    parts = folder.relative_to(Path.cwd()).parts if folder.is_relative_to(Path.cwd()) else folder.parts[-2:]
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] in _ROOTS else parts)


def run_link(uri: str, experiment: str | None, run: str) -> str:
    """Return the address of a run in the pages of its server, or of `mlflow ui` for a database."""
    server = uri.rstrip("/") if uri.startswith("http") else _PORT
    return f"{server}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def server_command(uri: str) -> str | None:
    """Return the command that serves the pages of a database file, in lines of 80 columns; None for a server."""
    file = sqlite_path(uri)
    if file is None:
        return None
    program = "mlflow" if shutil.which("mlflow") else _shorter(Path(sys.executable).with_name("mlflow"))
    command = f"{program} ui --backend-store-uri"
    address = shlex.quote(sqlite_uri(_shorter(file)))
    return f"{command} {address}" if len(f"{command} {address}") <= _COLUMNS else f"{command} \\\n  {address}"


def _shorter(path: Path) -> str:
    return min(str(path), os.path.relpath(path), key=len)
