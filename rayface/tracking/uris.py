"""Tracking URI of a job: tracking.uri, MLFLOW_TRACKING_URI, or the database of its project."""

import logging
import os
import shlex
from dataclasses import replace
from pathlib import Path

import platformdirs

from rayface.config import TrackingConfig
from rayface.credentials import is_masked, mask, unmasked
from rayface.files import read_json
from rayface.sqlite_uri import SCHEME, sqlite_path, sqlite_uri
from rayface.storage import is_lasting
from rayface.tracking.server import Settings, checked_uri
from rayface.tracking.spool import JOURNAL, SETTINGS

VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
# Credentials that MLflow, or the driver of its database, sends to whichever server the URI names.
_CREDENTIALS = (
    *(f"MLFLOW_TRACKING_{name}" for name in ("TOKEN", "USERNAME", "PASSWORD", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")),
    "PGPASSWORD",
    "MYSQL_PWD",
)
logger = logging.getLogger(__name__)


def tracking_uri(settings: TrackingConfig, folder: Path) -> str:
    """Return the URI for the journals in `folder`: tracking.uri, MLFLOW_TRACKING_URI, else a database file.

    The file is the one that the job was tracked in before, else mlflow.db of the project: one for all of its jobs, in
    the working directory. It is beside the job's folder if that folder is elsewhere, or if only that file exists.

    Raises:
        ValueError: the password of tracking.uri is masked and not in the environment, or MLflow cannot store there.
    """
    given = os.environ.get(VARIABLE)
    if settings.uri is not None:
        return checked_uri(unmasked(settings.uri, "tracking.uri", given, VARIABLE))
    return checked_uri(given or _former_database(folder) or sqlite_uri(_database(folder.absolute())))


def confirmed_uri(stored: str) -> str:
    """Return the URI that a run directory holds, with its password: a database file, or the one of the environment.

    A directory may come from outside, and a server that it names would get the MLflow credentials of this user.

    Raises:
        ValueError: it is another one, or its password is masked and not in the environment; one line.
    """
    given = os.environ.get(VARIABLE)
    uri = unmasked(stored, "tracking.uri", given, VARIABLE)
    if sqlite_path(uri) is None and uri.rstrip("/") != (given or "").rstrip("/"):
        raise ValueError(
            f"tracking.uri: {stored}: is named by the run directory: must be confirmed, since it gets your MLflow "
            f"credentials: if it is your server, set {VARIABLE}={stored}"
        )
    return uri


def check_stored_uri(settings: TrackingConfig, directory: object) -> None:
    """Log the server that only the directory of a resumed job names; see `confirmed_uri`.

    Without credentials that MLflow would send to any server, it needs no confirmation.

    Raises:
        ValueError: it would get the credentials of this user; one line.
    """
    if not settings.enabled or settings.uri is None or sqlite_path(settings.uri) is not None:
        return
    if any(os.environ.get(name) for name in _CREDENTIALS) or Path("~/.mlflow/credentials").expanduser().exists():
        confirmed_uri(settings.uri)
    logger.info("tracking.uri: %s, as the config in %s says", mask(settings.uri), directory)


def sync_command(uri: str, output: str) -> str:
    """Return the command that delivers the rest of a job's journals, whose URI has masked credentials.

    Unless MLFLOW_TRACKING_URI names the server already, it is set, or words say to set it with the password.
    """
    command = f"rayface sync {shlex.quote(output)}"
    given = mask(os.environ.get(VARIABLE) or "")
    if sqlite_path(uri) is not None or given.rstrip("/") == uri.rstrip("/"):
        return command
    if is_masked(uri):
        return f"{command} (first set {VARIABLE} to {uri}, with the password in place of ***)"
    return f"{VARIABLE}={shlex.quote(uri)} {command}"


def _former_database(folder: Path) -> str | None:
    path = folder / JOURNAL / SETTINGS
    uri = Settings(**read_json(path)).uri if path.is_file() else ""
    file = sqlite_path(uri)
    return uri if file is not None and file.is_file() else None


def _database(folder: Path) -> Path:
    project, beside = Path.cwd() / DATABASE, folder.parent / DATABASE
    # The journal of an output on an object store is in the user's state folder.
    inside = any(folder.is_relative_to(each) for each in (Path.cwd(), platformdirs.user_state_path("rayface")))
    if project.exists() and inside:
        return project
    return project if inside and is_lasting(project) and not beside.exists() else beside


def shared_tracking(settings: TrackingConfig, folder: Path) -> TrackingConfig:
    """Return settings that track the job in `folder` and the jobs that it starts in other folders at one place.

    Only the URI of a database file is resolved. A server's URI, which may hold a password, is not copied.

    Raises:
        ValueError: MLflow cannot store there.
    """
    uri = tracking_uri(settings, folder)
    return replace(settings, uri=uri) if uri.startswith(SCHEME) else settings
