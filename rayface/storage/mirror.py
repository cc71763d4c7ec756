"""Delivery of a local folder to an object store: journals as numbered segments, other files whole."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rayface.credentials import mask
from rayface.storage.errors import DataError, StorageError
from rayface.storage.remote_path import RemotePath
from rayface.storage.writes import write_bytes

SEGMENT_BYTES = 1 << 20  # the last segment of a journal is replaced as it grows up to this size
_GROWTH = 0.1  # of a larger file of a gradual folder before it is delivered again
DELIVERY_SECONDS = 2.0
_JOURNAL_SUFFIX = ".jsonl"
_pulling = threading.Lock()
logger = logging.getLogger(__name__)


class Segments:
    """A journal in an object store: object N of a folder holds bytes [N S, (N + 1) S) of it, S = SEGMENT_BYTES.

    Only complete lines are stored, so that a reader sees whole records however the writer ended.

    Args:
        local: the journal on this machine.
        folder: folder of the segments.
    """

    def __init__(self, local: Path, folder: RemotePath) -> None:
        self._local, self._folder = local, folder
        self._sent: int | None = None

    def push(self) -> None:
        """Deliver what was appended since; the store must hold a beginning of this journal, see `restore`."""
        if not self._local.exists():
            return
        if self._sent is None:
            self._sent = self.stored_bytes()
        whole = _end_of_lines(self._local, self._sent)
        while self._sent < whole:
            start = self._sent - self._sent % SEGMENT_BYTES
            end = min(whole, start + SEGMENT_BYTES)
            self._segment(start).upload(_part(self._local, start, end))
            self._sent = end

    def pull(self) -> None:
        """Append to the local journal what the store has beyond it; threads of one process may call it."""
        with _pulling:
            self._pull()

    def _pull(self) -> None:
        have = self._local.stat().st_size if self._local.exists() else 0
        while True:
            segment, offset = self._segment(have), have % SEGMENT_BYTES
            try:
                new = segment.read_bytes()[offset:] if not have or segment.stat().st_size > offset else b""
            except FileNotFoundError:
                return
            if not new:
                return
            self._local.parent.mkdir(parents=True, exist_ok=True)
            with self._local.open("ab") as file:
                file.write(new)
            have += len(new)

    def restore(self) -> None:
        """Make the local journal the stored one, unless it already is, or is that with records added."""
        stored = b"".join((self._folder / name).read_bytes() for name in sorted(self._folder.files()))
        if stored and self._local.exists() and _part(self._local, 0, len(stored)) == stored:
            return
        self._local.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(str(self._local), stored)

    def stored_bytes(self) -> int:
        """Return how many bytes the store holds."""
        return sum(file.st_size for file in self._folder.files().values())

    def _segment(self, offset: int) -> RemotePath:
        return self._folder / f"{offset // SEGMENT_BYTES:06d}"


@contextmanager
def fetched_journals(remote: RemotePath) -> Iterator[Path]:
    """Yield a temporary folder with every journal of a folder in an object store, stored in segments or whole."""
    with tempfile.TemporaryDirectory(prefix="rayface-journals-") as folder:
        for name in remote.files():
            journal = name.partition("/")[0]
            if journal.endswith(_JOURNAL_SUFFIX):
                with open(os.path.join(folder, journal), "ab") as file:
                    file.write((remote / name).read_bytes())
        yield Path(folder)


class FolderMirror:
    """Deliver a local folder to an object store every few seconds, and once more at the end of the context.

    Journals (`*.jsonl`) are delivered as `Segments` in a folder of their name; of other files, those that have changed,
    each by one upload. Hidden files, such as temporary ones, are not delivered. A store that does not answer delays the
    delivery only; what cannot be delivered at the end stays in the local folder, with a warning.

    Args:
        local: the folder.
        remote: where it is delivered to.
        pulled: names of journals that another process writes: they are fetched instead.
        only: names in the folder to deliver; None: all.
        gradual: names of folders whose files grow as long as the run does. Those of more than a segment are delivered
            again after they have grown by a tenth, and at the end: in all about 11 times their bytes.
        fenced: whether another process owns the remote folder by now: then nothing is delivered.
    """

    def __init__(
        self,
        local: Path,
        remote: RemotePath,
        *,
        pulled: Collection[str] = (),
        only: Collection[str] | None = None,
        gradual: Collection[str] = (),
        fenced: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fenced, self._gradual = fenced, frozenset(gradual)
        self._local, self._remote, self._pulled, self._only = local, remote, frozenset(pulled), only
        self.delivered = False
        """Whether everything was delivered at the end."""
        self._segments: dict[str, Segments] = {}
        self._states: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mirror")

    def __enter__(self) -> FolderMirror:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self.delivered = self._try_to_deliver(f"it is kept in {self._local}")

    def restore(self, folder: str) -> None:
        """Fetch a folder of the store, for example "journal", into the local one; see `Segments.restore`."""
        for name in (self._remote / folder).files():
            path, _, last = f"{folder}/{name}".rpartition("/")
            if path.endswith(_JOURNAL_SUFFIX):
                if last == "000000":
                    self._journal(path).restore()
                continue
            self.fetch(f"{folder}/{name}")

    def fetch(self, name: str) -> bool:
        """Fetch a file; return whether the store has it."""
        try:
            content = (self._remote / name).read_bytes()
        except FileNotFoundError:
            return False
        path = self._local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(str(path), content)
        self._states[name] = _state(path)
        return True

    def deliver(self) -> None:
        """Deliver and fetch now.

        Raises:
            DataError, StorageError: the store refuses or does not answer, or another process owns the folder.
        """
        if self._fenced():
            raise DataError(f"{self._remote}: another process owns it")
        with self._lock:
            for name in self._pulled:
                self._journal(name).pull()
            for name in self._names():
                path = self._local / name
                if path.suffix == _JOURNAL_SUFFIX:
                    self._journal(name).push()
                elif (state := _state(path)) != self._states.get(name) and not self._may_wait(name, state[1]):
                    (self._remote / name).upload(path.read_bytes())
                    self._states[name] = state

    def _may_wait(self, name: str, size: int) -> bool:
        """Return whether a changed file has grown too little to be delivered again."""
        if self._closing.is_set() or name.partition("/")[0] not in self._gradual or name not in self._states:
            return False
        _, before = self._states[name]
        return before > SEGMENT_BYTES and before <= size < before * (1 + _GROWTH)

    def _names(self) -> list[str]:
        names: list[str] = []
        for folder, folders, files in os.walk(self._local):
            folders[:] = [name for name in folders if not name.startswith(".")]
            place = Path(folder).relative_to(self._local)
            names += [str(place / name) for name in files if not name.startswith(".")]
        chosen = {name for name in names if self._only is None or name.partition("/")[0] in self._only}
        return sorted(chosen - self._pulled)

    def _journal(self, name: str) -> Segments:
        return self._segments.setdefault(name, Segments(self._local / name, self._remote / name))

    def _run(self) -> None:
        while not self._closing.wait(DELIVERY_SECONDS):
            self._try_to_deliver("it is tried again")

    def _try_to_deliver(self, otherwise: str) -> bool:
        try:
            self.deliver()
            return True
        except (DataError, StorageError, OSError) as error:
            logger.warning("%s: cannot be delivered (%s): %s", self._remote, mask(str(error)), otherwise)
            return False


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _part(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


def _end_of_lines(path: Path, start: int) -> int:
    """Return the offset after the last complete line, at least `start`."""
    size = path.stat().st_size
    added = _part(path, start, size)
    return start + added.rfind(b"\n") + 1
