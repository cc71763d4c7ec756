"""MLflow as a delivery needs it."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayface.credentials import mask
from rayface.tracking.journal import Record

logger = logging.getLogger(__name__)

MAX_METRICS = 1000  # MLflow's limits for one call of log_batch
MAX_PARAMS_AND_TAGS = 100
MAX_KEY = 250
MAX_PARAM_VALUE = 6000
MAX_TAG_VALUE = 8000
_FOLDERS = {"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs"}
PARENT = "mlflow.parentRunId"  # tag: the run that this one is shown under

# MLflow's own defaults let one call on a dead server block for four minutes; to try again is the delivery's
# job. Its tracebacks, links and bars would land in the middle of a progress display or of --json. The user's own
# settings win.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(kw_only=True)
class Settings:
    """Where a spool goes; kept in `tracking.json`, where the URI's credentials are masked."""

    uri: str
    experiment: str
    run_name: str
    tags: dict[str, str]
    spool_id: str
    created: float


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def checked_uri(uri: str) -> str:
    """Return `uri`, a sqlite file as an absolute path.

    Raises:
        ValueError: it is a folder, which MLflow no longer writes to.
    """
    path = _sqlite_path(uri)
    if path is None:
        if uri.partition("://")[0] in _FOLDERS or ("://" not in uri and uri != "databricks"):
            raise ValueError(
                f"tracking.uri {mask(uri)!r} must be sqlite:///FILE, http(s)://SERVER or another database: "
                "MLflow no longer writes to folders"
            )
        return uri
    _, mark, options = uri.partition("?")
    return f"sqlite:///{path.absolute()}{mark}{options}"


def make_database_folder(uri: str) -> None:
    """Make the folder of a sqlite file.

    Raises:
        ValueError: it cannot be made.
    """
    if (path := _sqlite_path(uri)) is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"tracking.uri {mask(uri)!r} must be in a folder that can be made: {error.strerror}"
        ) from error


class Server:
    """MLflow as a delivery needs it; making one finds or makes the run."""

    def __init__(self, uri: str, settings: Settings, run_id: str | None) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)  # a note for each of its migrations
        import mlflow

        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._entities = mlflow.entities
        self._error = mlflow.exceptions.MlflowException
        self.run_id = run_id or self._find_or_create_run(settings)
        self._log_tags(settings.tags)

    def _find_or_create_run(self, settings: Settings) -> str:
        experiment = self._client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            database = _sqlite_path(settings.uri)
            # MLflow's default is a folder in whatever the current directory is
            artifacts = None if database is None else (database.parent / "mlartifacts").as_uri()
            experiment_id = self._client.create_experiment(settings.experiment, artifact_location=artifacts)
        else:
            experiment_id = experiment.experiment_id
        found = self._client.search_runs(
            [experiment_id], f"tags.`rayface.spool_id` = '{settings.spool_id}'", max_results=1
        )
        if found:
            return found[0].info.run_id
        run = self._client.create_run(
            experiment_id,
            start_time=int(settings.created * 1000),
            tags={"rayface.spool_id": settings.spool_id},
            run_name=settings.run_name,
        )
        return run.info.run_id

    def log(self, records: Sequence[Record]) -> str | None:
        """Log metrics, params and tags; the reason why MLflow refused some of them, if it did.

        A server that does not answer raises. What it never takes is left out, so that the rest gets through.
        """
        metrics: list[Any] = []
        refused = None
        for record in records:
            values = record["values"]
            if record["kind"] == "metrics":
                when, step = int(record["time"] * 1000), record["step"]
                metrics += [self._entities.Metric(_key(key), float(values[key]), when, step) for key in values]
            elif record["kind"] == "params":
                refused = self._log_params(values) or refused
            else:
                refused = self._log_tags(values) or refused
        return self._log_batches("metrics", metrics, MAX_METRICS) or refused

    def _log_params(self, values: dict[str, str]) -> str | None:
        known = self._client.get_run(self.run_id).data.params
        wanted = {_key(key): _shortened(value, MAX_PARAM_VALUE) for key, value in values.items()}
        new = [self._entities.Param(key, value) for key, value in wanted.items() if key not in known]
        # MLflow refuses to change a param; a resumed run may well have other settings
        changed = {f"changed.{key}": value for key, value in wanted.items() if known.get(key, value) != value}
        return self._log_batches("params", new, MAX_PARAMS_AND_TAGS) or self._log_tags(changed)

    def _log_tags(self, values: Mapping[str, str]) -> str | None:
        tags = [self._entities.RunTag(_key(key), _shortened(values[key], MAX_TAG_VALUE)) for key in values]
        return self._log_batches("tags", tags, MAX_PARAMS_AND_TAGS)

    def _log_batches(self, kind: str, items: list[Any], size: int) -> str | None:
        """Log `items` by `size`; where a batch is refused, its halves, down to the one that is at fault."""
        refused = None
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            try:
                self._client.log_batch(self.run_id, **{kind: batch})
            except self._error as error:
                if error.error_code != "INVALID_PARAMETER_VALUE":
                    raise
                if len(batch) > 1:
                    refused = self._log_batches(kind, batch, (len(batch) + 1) // 2)
                else:
                    refused = f"MLflow refused {kind} {batch[0].key!r}: {error}"
        return refused

    def log_artifact(self, spool: Path, path: str, folder: str) -> None:
        """Send a file or a folder; one that is gone is left out."""
        source = spool / path
        if source.is_dir():
            self._client.log_artifacts(self.run_id, str(source), folder or None)
        elif source.exists():
            self._client.log_artifact(self.run_id, str(source), folder or None)
        else:
            logger.warning("tracking: artifact %s is gone, left out", source)

    def end(self, status: str, seconds: float) -> None:
        """Tell MLflow how and when the run ended."""
        self._client.set_terminated(self.run_id, status, int(seconds * 1000))

    def reopen(self) -> None:
        """Tell MLflow that a run that had ended goes on."""
        self._client.update_run(self.run_id, status="RUNNING")


def _key(key: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", key)[:MAX_KEY]


def _shortened(value: str, limit: int) -> str:
    note = f" ... [{len(value)} characters]"
    return value if len(value) <= limit else value[: limit - len(note)] + note
