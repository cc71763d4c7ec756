"""Imports MLflow as drivers use it into a process that will be forked; it takes each of them 2 s of CPU time.

MLflow configures its logging and its telemetry, which has threads, when it is imported.
"""

import os
from unittest.mock import patch

from rayface.mlflow_environment import ENVIRONMENT

with patch.dict(os.environ, ENVIRONMENT | os.environ):
    import mlflow.entities
    import mlflow.exceptions
    import mlflow.models

    # What MLflow imports at the first use of a local store.
    import mlflow.store.tracking.sqlalchemy_workspace_store  # noqa: F401
    import sqlalchemy.dialects.sqlite  # noqa: F401
