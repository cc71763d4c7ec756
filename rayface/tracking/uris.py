"""Where a job is tracked: tracking.uri, MLFLOW_TRACKING_URI, or a file beside the job's folder."""

import os
from dataclasses import replace
from pathlib import Path

from rayface.config import TrackingConfig
from rayface.credentials import unmasked
from rayface.tracking.server import checked_uri

VARIABLE = "MLFLOW_TRACKING_URI"


def tracking_uri(settings: TrackingConfig, folder: Path) -> str:
    """Where to send what is journalled in `folder`: tracking.uri, MLFLOW_TRACKING_URI, else mlflow.db beside it.

    Raises:
        ValueError: the password of tracking.uri is masked and not in the environment, or MLflow cannot store there.
    """
    given = os.environ.get(VARIABLE)
    if settings.uri is not None:
        return checked_uri(unmasked(settings.uri, "tracking.uri", given, VARIABLE))
    return checked_uri(given or f"sqlite:///{folder.parent / 'mlflow.db'}")


def shared_tracking(settings: TrackingConfig, folder: Path) -> TrackingConfig:
    """One place for a job in `folder` and for those that it starts in other folders; beside it, where none is named.

    Only files are fixed: a server's address, which may hold a password, is left where it was said.

    Raises:
        ValueError: the file's folder cannot be made.
    """
    uri = tracking_uri(settings, folder)
    return replace(settings, uri=uri) if uri.startswith("sqlite:///") else settings
