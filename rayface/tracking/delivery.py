"""Delivery of a job's journals to MLflow, and to the other readers that a config asks for."""

import importlib.util
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rayface.config import TrackingConfig
from rayface.credentials import mask
from rayface.files import read_json, write_json
from rayface.mlflow_environment import ENVIRONMENT
from rayface.tracking.origin import job_name, origin, run_link
from rayface.tracking.prometheus import Prometheus
from rayface.tracking.reader import JournalReader
from rayface.tracking.server import RUN_NAME, Server, Settings, checked_uri, make_database_folder
from rayface.tracking.spool import JOURNAL, SETTINGS
from rayface.tracking.tensorboard import TensorBoard
from rayface.tracking.uris import confirmed_uri, tracking_uri
from rayface.tracking.weights_and_biases import WeightsAndBiases

_PACKAGES = ("tensorboard", "wandb")
Beside = TensorBoard | WeightsAndBiases | Prometheus


class Delivery(JournalReader):
    """Reader that sends to MLflow.

    Args:
        folder: the spool.
        uri: MLflow tracking URI; the folder of a `sqlite:///` file is created.
        experiment: name of the experiment; created if missing.
        run_name: name of the run.
        tags: tags of the run.
        output: URI of the job's output, if that is in an object store; see `is_own`.

    Raises:
        ValueError: MLflow cannot store at `uri`.
    """

    environment = ENVIRONMENT

    def __init__(
        self,
        folder: Path,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        tags: Mapping[str, str],
        output: str | None = None,
    ) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / SETTINGS
        old = Settings(**read_json(path)) if path.exists() else None
        self._uri, self._output = checked_uri(uri), output
        make_database_folder(self._uri)
        self._settings = Settings(
            uri=mask(self._uri),
            experiment=experiment,
            run_name=old.run_name if old else run_name,
            tags=dict(tags),
            spool_id=old.spool_id if old else uuid.uuid4().hex,
            created=old.created if old else time.time(),
        )
        if old != self._settings:
            write_json(path, asdict(self._settings))
        super().__init__(folder, place=self.uri, target=f"{self.uri} {experiment}")

    @classmethod
    def of(cls, folder: Path, output: str | None = None) -> "Delivery":
        """Return a delivery with the settings that an earlier one stored in `folder`.

        Raises:
            ValueError: the folder was never delivered, or its URI is not confirmed, see `confirmed_uri`.
        """
        path = Path(folder) / SETTINGS
        if not path.is_file():
            raise ValueError(f"spool {folder} must hold a {SETTINGS}: give the directory of a tracked run")
        old = Settings(**read_json(path))
        return cls(
            folder,
            uri=confirmed_uri(old.uri),
            experiment=old.experiment,
            run_name=old.run_name,
            tags=old.tags,
            output=output,
        )

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None until MLflow has answered."""
        return self._progress.run_id

    @property
    def uri(self) -> str:
        """The tracking URI without credentials."""
        return self._settings.uri

    @property
    def link(self) -> str | None:
        """Address of the run in MLflow's pages; None until MLflow has answered."""
        progress = self._progress
        return run_link(self.uri, progress.experiment_id, progress.run_id) if progress.run_id else None

    def connected(self) -> Server:
        """Connect in this thread; for a spool that is delivered.

        Raises:
            Exception: whatever the store raises.
        """
        return self._connect()

    def _connect(self) -> Server:
        server = Server(self._uri, self._settings, self._progress.run_id, self._output)
        self._progress.run_id, self._progress.experiment_id = server.run_id, server.experiment_id
        return server


def start(
    settings: TrackingConfig, run: Path, tags: Mapping[str, str], after: float = 0.0, output: str | None = None
) -> Delivery:
    """Start delivering a run's journals to `tracking_uri(settings, run)`, `after` seconds from now.

    Args:
        output: see `Delivery`.

    Raises:
        ValueError: MLflow cannot store there.
    """
    uri = tracking_uri(settings, run)
    tags = {**origin(), **tags}
    name = tags.pop(RUN_NAME, job_name(run))
    delivery = Delivery(run / JOURNAL, uri=uri, experiment=settings.experiment, run_name=name, tags=tags, output=output)
    delivery.start(after)
    return delivery


def require_packages(settings: TrackingConfig) -> None:
    """Refuse a setting whose package is missing.

    Raises:
        ValueError: one line.
    """
    for name in _PACKAGES:
        if getattr(settings, name) and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"tracking.{name}: true: the package {name} is not installed: pip install {name}, or leave it out"
            )


def start_readers(settings: TrackingConfig, run: Path, name: str, after: float) -> list[Beside]:
    """Start the readers beside MLflow's that a config asks for, `after` seconds from now; see `require_packages`."""
    spool = run / JOURNAL
    readers: list[Beside] = [TensorBoard(spool)] if settings.tensorboard else []
    if settings.wandb:
        readers.append(WeightsAndBiases(spool, project=settings.experiment, name=name))
    if settings.prometheus:
        readers.append(Prometheus(spool, name=name))
    for reader in readers:
        reader.start(after)
    return readers


def _started_readers(folder: Path) -> list[JournalReader]:
    """Return the readers beside MLflow's that have written of a spool before."""
    readers: list[JournalReader] = []
    if (folder / f"delivered{TensorBoard.suffix}.json").is_file():
        readers.append(TensorBoard(folder))
    if (state := folder / f"delivered{WeightsAndBiases.suffix}.json").is_file():
        project = str(read_json(state)["target"])
        readers.append(WeightsAndBiases(folder, project=project, name=job_name(folder.parent)))
    return readers


def deliver(folder: Path, timeout: float, output: str | None = None) -> bool:
    """Send the undelivered records of a run's spool to where it was tracked.

    Args:
        folder: the spool of the run.
        timeout: maximum seconds to try.
        output: see `Delivery`.

    Returns:
        True if everything is delivered.

    Raises:
        ValueError: `folder` is not a spool, or its URI is not confirmed, see `confirmed_uri`.
    """
    readers = _started_readers(folder)
    if not readers or (folder / SETTINGS).is_file():
        readers.append(Delivery.of(folder, output))
    for reader in readers:
        reader.start()
    until = time.monotonic() + timeout
    delivered = [reader.close(max(0.0, until - time.monotonic())) for reader in readers]
    return all(delivered)
