"""Tracking URI of a job: tracking.uri, MLFLOW_TRACKING_URI, or a database beside the job's folder."""

import os
from dataclasses import replace
from pathlib import Path

from rayface.config import TrackingConfig
from rayface.credentials import unmasked
from rayface.tracking.server import checked_uri

VARIABLE = "MLFLOW_TRACKING_URI"


def tracking_uri(settings: TrackingConfig, folder: Path) -> str:
    """Return the URI for the journals in `folder`: tracking.uri, MLFLOW_TRACKING_URI, else mlflow.db beside it.

    Raises:
        ValueError: the password of tracking.uri is masked and not in the environment, or MLflow cannot store there.
    """
    given = os.environ.get(VARIABLE)
    if settings.uri is not None:
        return checked_uri(unmasked(settings.uri, "tracking.uri", given, VARIABLE))
    return checked_uri(given or f"sqlite:///{folder.parent / 'mlflow.db'}")


def shared_tracking(settings: TrackingConfig, folder: Path) -> TrackingConfig:
    """Return settings that track the job in `folder` and the jobs that it starts in other folders at one place.

    Only the URI of a database file is resolved. A server's URI, which may hold a password, is not copied.

    Raises:
        ValueError: MLflow cannot store there.
    """
    uri = tracking_uri(settings, folder)
    return replace(settings, uri=uri) if uri.startswith("sqlite:///") else settings
