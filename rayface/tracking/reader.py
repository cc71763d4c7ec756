"""A thread that reads the journals of a job and sends them to one destination."""

import logging
import math
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from filelock import FileLock, Timeout

from rayface.credentials import mask
from rayface.files import hold_lock
from rayface.tracking.delivered import Delivered
from rayface.tracking.journal import Record, read_records

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0
MAX_CLOSING_BACKOFF_SECONDS = 2.0
MAX_METRICS = 1000  # of a batch; MLflow's limit of one call
_SENT = ("metrics", "params", "tags", "dataset")


class Destination(ABC):
    """One run of a tracking system; what it does not keep it ignores."""

    @abstractmethod
    def log(self, records: Sequence[Record]) -> str | None:
        """Log metrics, params, tags and datasets; return why some were refused, None if none was."""

    def log_artifact(self, spool: Path, path: str, folder: str) -> None:
        """Log a file or a folder of the run; `path` is relative to the spool, or a URI."""
        return

    def log_model(self, spool: Path, path: str) -> None:
        """Log the model in a run directory; `path` is relative to the spool."""
        return

    def end(self, status: str, seconds: float) -> None:
        """Set the final status, and the end in seconds since the epoch."""
        return

    def reopen(self) -> None:
        """Set a finished run back to running."""
        return


class JournalReader(ABC):
    """Daemon thread that sends the journals of a folder to a destination without disturbing the run.

    What the destination has accepted is stored after every batch. Errors are not raised: they are kept in `last_error`
    (without credentials), and the request is retried with exponential backoff.

    Args:
        folder: the spool; every `*.jsonl` in it is a journal, including ones created later.
        place: name and address of the destination, for messages.
        target: what the stored state belongs to; another target gets all records.
    """

    suffix: ClassVar[str] = ""
    """Of the files that hold state and lock."""
    environment: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Environment variables that the destination's library needs, unless the user has set them."""

    def __init__(self, folder: Path, *, place: str, target: str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.place, self._target = place, target
        self.last_error: str | None = None
        self._lasting_error: str | None = None
        self._progress = self._load_progress()
        self._destination: Destination | None = None
        self._closing = threading.Event()
        self._after = 0.0
        self._deadline = math.inf
        self._delivered = False
        self._thread = threading.Thread(target=self._run, name=f"rayface-tracking{self.suffix}", daemon=True)

    @abstractmethod
    def _connect(self) -> Destination:
        """Return the run of this spool, made if missing."""

    def _prepare(self) -> Delivered:
        """Return the stored state, made to agree with the destination; called before the first batch."""
        return self._load_progress()

    def _start_over(self, journals: Sequence[str]) -> None:
        """Read journals from their start that were replaced by others; a destination drops what it has already."""
        self._progress.cursors.update(dict.fromkeys(journals, 0))

    def _interrupted(self) -> None:
        """Prepare to send a batch again, after an error."""
        return

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
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)
        lock: FileLock | None = None
        prepared = False
        failures = 0
        while time.monotonic() < self._deadline:
            closing = self._closing.is_set()  # read before sending, which then covers all records before close()
            try:
                lock = lock or hold_lock(self.folder / f"delivery{self.suffix}.lock")
                if not prepared:
                    self._progress = self._prepare()  # another process may have sent more meanwhile
                    prepared = True
                self._send_pending()
                failures = 0
                self.last_error = self._lasting_error
                if closing:
                    self._delivered = True
                    break
            # A tracking store is a plug-in that may raise any exception, and none may end the delivery.
            except Exception as error:
                failures += 1
                self._note(error)
                self._interrupted()
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
            logger.warning("tracking at %s: %s; the run continues, the spool is kept", self.place, text)
        self.last_error = text

    def _note_lasting(self, text: str) -> None:
        """Note an error that a retry does not fix: it stays the last error when later deliveries succeed."""
        self._note(text)
        self._lasting_error = self.last_error

    def _send_pending(self) -> None:
        """Send all pending records."""
        paths = sorted(self.folder.glob("*.jsonl"))
        if replaced := [p.name for p in paths if self._progress.cursors.get(p.name, 0) > p.stat().st_size]:
            self._start_over(replaced)
        progress = self._progress
        for path in paths:
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
        while progress.models:
            self._connected().log_model(self.folder, progress.models[0])
            progress.models.pop(0)
            self._save()
        if progress.finish and not progress.ended:
            self._connected().end(progress.finish["status"], progress.finish["time"])
            progress.ended = True
            self._save()

    def _next_records(self, path: Path) -> tuple[list[Record], int]:
        """Return the next records of a journal, at most one batch of metrics, and the offset after them."""
        end = self._progress.cursors.get(path.name, 0)
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
        sent = [record for record in records if record["kind"] in _SENT]
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
        waiting = ((path, folder) for path, folder in progress.artifacts)  # lists, where they were stored
        progress.artifacts = list(dict.fromkeys([*waiting, *artifacts]))
        models = [record["path"] for record in records if record["kind"] == "model"]
        progress.models = list(dict.fromkeys([*progress.models, *models]))

    def _connected(self) -> Destination:
        if self._destination is None:
            self._destination = self._connect()
            self._save()
        return self._destination

    def _load_progress(self) -> Delivered:
        return Delivered.load(self._state_file, self._target)

    def _save(self) -> None:
        self._progress.save(self._state_file)

    @property
    def _state_file(self) -> Path:
        return self.folder / f"delivered{self.suffix}.json"
