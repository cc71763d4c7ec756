"""Connection to MLflow: the calls that a delivery needs."""

import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayface.credentials import mask
from rayface.files import read_json
from rayface.models.model_card import CARD
from rayface.models.model_info import DESCRIPTION, WEIGHTS
from rayface.sqlite_uri import absolute_sqlite_uri, sqlite_path
from rayface.storage import DataError, is_local, local_copy
from rayface.tracking.journal import Record
from rayface.tracking.own_files import is_inside, is_own
from rayface.tracking.reader import MAX_METRICS, Destination

logger = logging.getLogger(__name__)

_MODEL_FILES = (WEIGHTS, DESCRIPTION, CARD)
MAX_PARAMS_AND_TAGS = 100  # limit of MLflow for one call of log_batch
_REFUSALS = ("INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND", "BAD_REQUEST")
MAX_KEY = 250
MAX_DIGEST = 36
MAX_DATASET_NAME = 500
MAX_VERSION_TAG = 5000
MAX_PARAM_VALUE = 6000
MAX_TAG_VALUE = 8000
_FOLDERS = {"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs"}
PARENT = "mlflow.parentRunId"  # tag: the run that this one is nested under
RUN_NAME = "mlflow.runName"  # tag: name of the run
# Experiments open as traces of language models unless this tag, and the link, say that they train models.
_EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")


@dataclass(kw_only=True)
class Settings:
    """Destination of a spool; stored in `tracking.json`, with the URI's credentials masked."""

    uri: str
    experiment: str
    run_name: str
    tags: dict[str, str]
    spool_id: str
    created: float


def checked_uri(uri: str) -> str:
    """Return `uri`; the path of a sqlite file is made absolute.

    Raises:
        ValueError: it names a folder, which MLflow no longer supports.
    """
    if uri.partition("://")[0] in _FOLDERS or ("://" not in uri and uri != "databricks"):
        raise ValueError(
            f"tracking.uri {mask(uri)!r} must be sqlite:///FILE, http(s)://SERVER or another database: "
            "MLflow no longer supports folders"
        )
    return absolute_sqlite_uri(uri)


def make_database_folder(uri: str) -> None:
    """Create the folder of a sqlite file.

    Raises:
        ValueError: it cannot be created.
    """
    if (path := sqlite_path(uri)) is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"tracking.uri {mask(uri)!r} must be in a folder that can be created: {error.strerror}"
        ) from error


class Server(Destination):
    """Connection to one MLflow run; the constructor finds or creates the run. For `output` see `is_own`."""

    def __init__(self, uri: str, settings: Settings, run_id: str | None, output: str | None = None) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)  # it logs every database migration
        import mlflow

        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._entities = mlflow.entities
        self._error = mlflow.exceptions.MlflowException
        found = self._client.get_run(run_id) if run_id else self._find_or_create_run(settings)
        self.run_id: str = found.info.run_id
        self.experiment_id: str = found.info.experiment_id
        self._name, self._output = settings.run_name, output
        self._log_tags({key: value for key, value in settings.tags.items() if key != RUN_NAME})

    def _find_or_create_run(self, settings: Settings) -> Any:
        experiment = self._client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            database = sqlite_path(settings.uri)
            # MLflow's default is a folder in the current directory.
            artifacts = None if database is None else (database.parent / "mlartifacts").as_uri()
            experiment_id = self._client.create_experiment(settings.experiment, artifact_location=artifacts)
        else:
            experiment_id = experiment.experiment_id
        if experiment is None or _EXPERIMENT_KIND[0] not in experiment.tags:
            self._client.set_experiment_tag(experiment_id, *_EXPERIMENT_KIND)
        found = self._client.search_runs(
            [experiment_id], f"tags.`rayface.spool_id` = '{settings.spool_id}'", max_results=1
        )
        if found:
            return found[0]
        tags = {**settings.tags, "rayface.spool_id": settings.spool_id, RUN_NAME: settings.run_name}
        return self._client.create_run(
            experiment_id, start_time=int(settings.created * 1000), tags=tags, run_name=settings.run_name
        )

    def log(self, records: Sequence[Record]) -> str | None:
        """Log metrics, params and tags; return why MLflow refused some of them, None if it did not.

        Raises if the server does not answer. Values that MLflow refuses are skipped, and the rest is logged.
        """
        metrics: list[Any] = []
        refused = None
        for record in records:
            values = record["values"]
            if record["kind"] == "dataset":
                self._log_dataset(values)
            elif record["kind"] == "metrics":
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
        # MLflow refuses to change a param, but a resumed run may have other settings: log them as tags.
        changed = {f"changed.{key}": value for key, value in wanted.items() if known.get(key, value) != value}
        refused = self._log_batches("params", new, MAX_PARAMS_AND_TAGS)
        return self._log_tags(changed) or refused

    def _log_tags(self, values: Mapping[str, str]) -> str | None:
        tags = [self._entities.RunTag(_key(key), _shortened(values[key], MAX_TAG_VALUE)) for key in values]
        return self._log_batches("tags", tags, MAX_PARAMS_AND_TAGS)

    def _log_batches(self, kind: str, items: list[Any], size: int) -> str | None:
        """Log `items` in batches of `size`; bisect a refused batch down to the refused item."""
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
        """Send a file or a folder; skip one that is missing, or outside of the run directory, with a warning.

        Raises:
            StorageError: the object store of a file does not answer.
        """
        if not is_own(path, spool, self._output):
            logger.warning("tracking: artifact %s is outside of the run directory, skipped", path)
            return
        try:
            source = spool / path if is_local(path) else local_copy(path)
        except DataError as error:
            logger.warning("tracking: artifact %s, skipped", error)
            return
        if source.is_dir():
            self._client.log_artifacts(self.run_id, str(source), folder or None)
        elif source.exists():
            self._client.log_artifact(self.run_id, str(source), folder or None)
        else:
            logger.warning("tracking: artifact %s is missing, skipped", source)

    def _log_dataset(self, values: Mapping[str, str]) -> None:
        dataset = self._entities.Dataset(
            name=_shortened(values["name"], MAX_DATASET_NAME),
            digest=values["digest"][:MAX_DIGEST],
            source_type="local" if "://" not in values["source"] else values["source"].partition(":")[0],
            source=json.dumps({"uri": values["source"]}),
            profile=json.dumps({key: int(value) for key, value in values.items() if key.startswith("num_")}),
        )
        tags = [self._entities.InputTag("mlflow.data.context", values["context"])]
        self._client.log_inputs(self.run_id, datasets=[self._entities.DatasetInput(dataset, tags)])

    def log_model(self, spool: Path, path: str) -> None:
        """Log the model in a run directory as a logged model, without code and pickle; skip as `log_artifact` does.

        On a server before MLflow 3, which has no logged models, the weights are an artifact of the run.
        """
        folder = spool / path
        own = all(is_inside(folder / name, spool.parent) for name in _MODEL_FILES)
        if not own or not (folder / WEIGHTS).is_file():
            logger.warning("tracking: model %s is missing or outside of the run, skipped", folder / WEIGHTS)
            return
        try:
            self._logged_model(folder)
        except self._error as error:
            if error.error_code not in _REFUSALS:
                raise
            self._client.log_artifact(self.run_id, str(folder / WEIGHTS), None)

    def _logged_model(self, folder: Path) -> str:
        """Return the id of the run's logged model, made if missing."""
        found = self._client.search_logged_models(
            [self.experiment_id], f"tags.`rayface.run_id` = '{self.run_id}'", max_results=1
        )
        facts = read_json(folder / DESCRIPTION)
        model = (
            found[0]
            if found
            else self._client.create_logged_model(
                self.experiment_id,
                name=re.sub(r"[^\w\- ]", "_", self._name),
                source_run_id=self.run_id,
                tags={"rayface.run_id": self.run_id},
                params={key: str(value) for key, value in facts.items() if isinstance(value, str | int | float)},
                model_type="rayface",
            )
        )
        if str(model.status) != "READY":
            with _model_folder(folder, self.run_id, model.model_id) as files:
                self._client.log_model_artifacts(model.model_id, str(files))
            self._client.finalize_logged_model(model.model_id, "READY")
            output = self._entities.LoggedModelOutput(model.model_id, step=0)
            self._client.log_outputs(self.run_id, models=[output])
        return str(model.model_id)

    def register(self, folder: Path, name: str, tags: Mapping[str, str]) -> tuple[int, bool]:
        """Return the version of a registered model that is the run's model, and whether it was created now.

        Raises:
            ValueError: its files are links out of the run directory.
        """
        if not all(is_inside(folder / name, folder) for name in _MODEL_FILES):
            raise ValueError(f"RUN {folder}: the model's files must be in it, not links: copy them there")
        model = self._client.get_logged_model(self._logged_model(folder))
        with contextlib.suppress(self._error):  # there is one
            self._client.create_registered_model(name)
        for known in self._client.search_model_versions(f"name='{name}' and run_id='{self.run_id}'"):
            return int(known.version), False
        short = {key: _shortened(value, MAX_VERSION_TAG) for key, value in tags.items()}
        # Not "models:/ID", which MLflow resolves in the store of the process, not in that of this client.
        version = self._client.create_model_version(
            name, model.artifact_location, run_id=self.run_id, tags=short, model_id=model.model_id
        )
        return int(version.version), True

    def end(self, status: str, seconds: float) -> None:
        """Set the final status and end time of the run."""
        self._client.set_terminated(self.run_id, status, int(seconds * 1000))

    def reopen(self) -> None:
        """Set a finished run back to running."""
        self._client.update_run(self.run_id, status="RUNNING")


@contextlib.contextmanager
def _model_folder(run: Path, run_id: str, model_id: str) -> Iterator[Path]:
    """Provide a folder with links to the files of a model, and MLflow's description of it."""
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as folder:
        for name in _MODEL_FILES:
            if (run / name).is_file():
                (Path(folder) / name).symlink_to(run.absolute() / name)
        flavor = {"data": WEIGHTS, "loader": "rayface.load_model"}
        Model(run_id=run_id, model_id=model_id, flavors={"rayface": flavor}).save(f"{folder}/MLmodel")
        yield Path(folder)


def _key(key: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", key)[:MAX_KEY]


def _shortened(value: str, limit: int) -> str:
    note = f" ... [{len(value)} characters]"
    return value if len(value) <= limit else value[: limit - len(note)] + note
