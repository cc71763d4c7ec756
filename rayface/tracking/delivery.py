"""Background thread that delivers the journals of a job to MLflow."""

import logging
import math
import os
import random
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from rayface.config import TrackingConfig
from rayface.credentials import mask, unmasked
from rayface.files import hold_lock, read_json, write_json
from rayface.tracking.delivered import DELIVERED, Delivered
from rayface.tracking.journal import Record, read_records
from rayface.tracking.origin import job_name, origin, run_link
from rayface.tracking.server import (
    ENVIRONMENT,
    MAX_METRICS,
    RUN_NAME,
    Server,
    Settings,
    checked_uri,
    make_database_folder,
)
from rayface.tracking.spool import JOURNAL, SETTINGS
from rayface.tracking.uris import VARIABLE, tracking_uri

_LOCK = "delivery.lock"
logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0
MAX_CLOSING_BACKOFF_SECONDS = 2.0


class Delivery:
    """Daemon thread that sends the journals of a folder to MLflow without disturbing the run.

    Errors are not raised: they are kept in `last_error` (without credentials), and the request is retried with
    exponential backoff.

    Args:
        folder: the spool; every `*.jsonl` in it is a journal, including ones created later.
        uri: MLflow tracking URI; the folder of a `sqlite:///` file is created.
        experiment: name of the experiment; created if missing.
        run_name: name of the run.
        tags: tags of the run.

    Raises:
        ValueError: MLflow cannot store at `uri`.
    """

    def __init__(self, folder: Path, *, uri: str, experiment: str, run_name: str, tags: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS
        old = Settings(**read_json(path)) if path.exists() else None
        self._uri = checked_uri(uri)
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
        self.last_error: str | None = None
        self._lasting_error: str | None = None
        self._progress = self._load_progress()
        self._server: Server | None = None
        self._closing = threading.Event()
        self._after = 0.0
        self._deadline = math.inf
        self._delivered = False
        self._thread = threading.Thread(target=self._run, name="rayface-tracking", daemon=True)

    @classmethod
    def of(cls, folder: Path) -> "Delivery":
        """Return a delivery with the settings that an earlier one stored in `folder`.

        Raises:
            ValueError: the folder was never delivered, or the password of its URI is unknown.
        """
        path = Path(folder) / SETTINGS
        if not path.is_file():
            raise ValueError(f"spool {folder} must hold a {SETTINGS}: give the directory of a tracked run")
        old = Settings(**read_json(path))
        uri = unmasked(old.uri, "tracking.uri", os.environ.get(VARIABLE), VARIABLE)
        return cls(folder, uri=uri, experiment=old.experiment, run_name=old.run_name, tags=old.tags)

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

    def start(self, after: float = 0.0) -> None:
        """Start sending, `after` seconds from now, or when it is closed."""
        self._after = after
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Send the remaining records and stop.

        Args:
            timeout: maximum seconds to wait; unsent records stay in the spool.

        Returns:
            True if everything is delivered.
        """
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return self._delivered

    def _run(self) -> None:
        self._closing.wait(self._after)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        lock: FileLock | None = None
        failures = 0
        while time.monotonic() < self._deadline:
            closing = self._closing.is_set()  # read before the round, which then covers all records before close()
            try:
                if lock is None:
                    lock = hold_lock(self.folder / _LOCK)
                    self._progress = self._load_progress()  # another process may have sent more meanwhile
                complete = self._round()
                failures = 0
                self.last_error = self._lasting_error
            # A tracking store is a plug-in that may raise any exception, and none may end the delivery.
            except Exception as error:
                complete = False
                failures += 1
                self._note(error)
            if complete and closing:
                self._delivered = True
                break
            self._pause(failures)
        if lock is not None:
            lock.release()

    def _pause(self, failures: int) -> None:
        if not failures:
            self._closing.wait(POLL_SECONDS)
            return
        longest = MAX_CLOSING_BACKOFF_SECONDS if self._closing.is_set() else MAX_BACKOFF_SECONDS
        seconds = min(0.5 * 2 ** min(failures, 10), longest) * random.uniform(0.5, 1.0)
        if self._closing.is_set():
            time.sleep(max(0.0, min(seconds, self._deadline - time.monotonic())))
        else:
            self._closing.wait(seconds)

    def _note(self, error: Exception | str) -> None:
        if isinstance(error, Timeout):
            error = "another process delivers this spool"
        text = mask(" ".join(str(error).split()))[:500]
        if text != self.last_error:
            logger.warning("tracking at %s: %s; the run continues, the spool is kept", self.uri, text)
        self.last_error = text

    def _note_lasting(self, text: str) -> None:
        """Note an error that a retry does not fix: it stays the last error when later deliveries succeed."""
        self._note(text)
        self._lasting_error = self.last_error

    def _round(self) -> bool:
        """Send all pending records; return True when none are left."""
        progress = self._progress
        for path in sorted(self.folder.glob("*.jsonl")):
            while True:
                records, end = self._next_records(path)
                if end == progress.cursors.get(path.name, 0):
                    break
                self._send(path.name, records)
                progress.cursors[path.name] = end
                self._save()
        while progress.artifacts:
            self._connected().log_artifact(self.folder, *progress.artifacts[0])
            progress.artifacts.pop(0)
            self._save()
        if progress.finish and not progress.ended:
            self._connected().end(progress.finish["status"], progress.finish["time"])
            progress.ended = True
            self._save()
        return True

    def _next_records(self, path: Path) -> tuple[list[Record], int]:
        """Return the next records of a journal, at most one batch of metrics, and the offset after them."""
        end = self._progress.cursors.get(path.name, 0)
        if end > path.stat().st_size:
            end = 0  # the journal was replaced; MLflow drops metrics that it already has
        records: list[Record] = []
        num_metrics = 0
        for record, next_end in read_records(path, end):
            if record is None:
                self._note_lasting(f"{path.name}: the line before byte {next_end} is not a record, skipped")
            else:
                num_metrics += len(record["values"]) if record["kind"] == "metrics" else 0
                if records and num_metrics > MAX_METRICS:
                    break
                records.append(record)
            end = next_end
        return records, end

    def _send(self, journal: str, records: list[Record]) -> None:
        progress = self._progress
        sent = [record for record in records if record["kind"] in ("metrics", "params", "tags")]
        for record in records:
            if record["kind"] == "finish":
                progress.finish = {**record, "journal": journal}
                progress.ended = False
            elif progress.finish and progress.finish["journal"] == journal:
                progress.finish = None  # the run was resumed
        if progress.ended and not progress.finish:
            self._connected().reopen()
            progress.ended = False
        if sent and (refused := self._connected().log(sent)):
            self._note_lasting(refused)
        artifacts = [(record["path"], record["folder"]) for record in records if record["kind"] == "artifact"]
        progress.artifacts += [artifact for artifact in artifacts if artifact not in progress.artifacts]

    def _connected(self) -> "Server":
        if self._server is None:
            server = Server(self._uri, self._settings, self._progress.run_id)
            self._progress.run_id, self._progress.experiment_id = server.run_id, server.experiment_id
            self._save()
            self._server = server
        return self._server

    def _load_progress(self) -> Delivered:
        return Delivered.load(self.folder / DELIVERED, f"{self.uri} {self._settings.experiment}")

    def _save(self) -> None:
        self._progress.save(self.folder / DELIVERED)


def start(settings: TrackingConfig, run: Path, tags: Mapping[str, str], after: float = 0.0) -> Delivery:
    """Start delivering a run's journals to `tracking_uri(settings, run)`, `after` seconds from now.

    Raises:
        ValueError: MLflow cannot store there.
    """
    uri = tracking_uri(settings, run)
    tags = {**origin(), **tags}
    name = tags.pop(RUN_NAME, job_name(run))
    delivery = Delivery(run / JOURNAL, uri=uri, experiment=settings.experiment, run_name=name, tags=tags)
    delivery.start(after)
    return delivery


def deliver(folder: Path, timeout: float) -> bool:
    """Send the undelivered records of a run's spool, with the settings of that run.

    Args:
        folder: the spool of the run.
        timeout: maximum seconds to try.

    Returns:
        True if everything is delivered.

    Raises:
        ValueError: `folder` is not a spool.
    """
    delivery = Delivery.of(folder)
    delivery.start()
    return delivery.close(timeout)
