"""Environment variables with which MLflow is imported and used."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Values where the user has none.

With MLflow's defaults, one call to a dead server blocks for four minutes; the delivery does the retries. MLflow's
tracebacks, links and bars would corrupt the progress display and the output of --json.
"""
