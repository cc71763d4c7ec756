"""Storage of a run or sweep: a disk that all processes share, or an object store and working folders of processes."""

import contextlib
import errno
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import platformdirs

from rayface.files import exclusive_folder, is_owned, open_to_append, write_file, write_json
from rayface.job_folder import delete_unfinished
from rayface.storage import LEASE, AnyPath, DataError, FolderMirror, RemotePath, StorageError, leased, path_of
from rayface.storage.lease import Lease, read_owner
from rayface.tracking.spool import READER_FOLDERS

Values = Mapping[str, Any]
"""A JSON object whose keys belong to another module."""

_LOOK_SECONDS = 5.0  # between looks for a request in an object store
_leases: dict[str, Lease] = {}  # of the directories that this process owns
_looked: dict[str, float] = {}  # when this process has looked for a request
_delivered: dict[str, Path] = {}  # files in object stores that this process appends to: what it delivers for them


@dataclass(frozen=True)
class RunStore:
    """Small files that all processes of a run or sweep share, on a disk or in an object store.

    Attributes:
        path: the directory; a text, path or URI, becomes a path.
        writer: the process whose working folder on its own machine is meant, if the directory is in an object store.
    """

    path: AnyPath
    writer: str = "driver"
    key: ClassVar[str] = "train.output"
    """Config key that names the directory, for messages."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", path_of(self.path))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def working(self) -> Path:
        """The folder of files that are appended to or that libraries write: the directory itself on a disk."""
        if isinstance(self.path, Path):
            return self.path
        name = f"{self.path.name}-{hashlib.sha256(str(self.path).encode()).hexdigest()[:8]}"
        return platformdirs.user_state_path("rayface") / "runs" / self.writer / name

    def make_folder(self, folder: Path) -> Path:
        """Create a folder in the working folder of a directory in an object store.

        Raises:
            DataError: the disk refuses it.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written ({error.strerror}): set XDG_STATE_HOME to a folder that can be"
            ) from None
        return folder

    def _exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def _mark(self, name: str) -> None:
        (self.path / name).touch()

    def _is_asked(self, name: str) -> bool:
        """Return whether a request exists; in an object store it is looked for every few seconds only."""
        if isinstance(self.path, Path):
            return self._exists(name)
        key, now = f"{self.path}/{name}", time.monotonic()
        if now - _looked.get(key, -_LOOK_SECONDS) < _LOOK_SECONDS:
            return False
        with contextlib.suppress(StorageError):  # a store that does not answer must not end a training
            if self._exists(name):
                return True  # until it is withdrawn, every look sees it
        _looked[key] = now
        return False

    def _append(self, name: str, text: str) -> None:
        """Append to a small text file that one process writes at a time; see `_appending`."""
        local = _delivered.get(f"{self.path}/{name}") if isinstance(self.path, RemotePath) else self.path / name
        if local is not None:
            with open(open_to_append(local), "a") as file:
                file.write(text)
            return
        before = ""
        with contextlib.suppress(FileNotFoundError):
            before = (self.path / name).read_text()
        write_file(self.path / name, (before + text).encode())

    @contextlib.contextmanager
    def _appending(self, name: str, mirror: FolderMirror) -> Iterator[None]:
        """Append to a text file in the working folder, which a mirror delivers, inside the context."""
        local = self.working / name
        if not mirror.fetch(name):
            local.unlink(missing_ok=True)  # of a run that was deleted
        key = f"{self.path}/{name}"
        _delivered[key] = local
        try:
            yield
        finally:
            del _delivered[key]

    def _delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def _read_json(self, name: str) -> Any:
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        return None

    def _write_json(self, name: str, value: Values | Sequence[str]) -> None:
        write_json(self.path / name, value)

    def _read_required(self, name: str) -> Values:
        values: Values = json.loads((self.path / name).read_text(encoding="utf-8"))
        return values

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Own the directory, created if missing, inside the context; see `exclusive_folder` and `leased`.

        On a disk, temporary files of killed writers are deleted.
        """
        name = f"{self.key}: {self}"
        if isinstance(self.path, Path):
            with exclusive_folder(self.path, name):
                delete_unfinished(str(self.path))
                yield
                with contextlib.suppress(OSError):
                    delete_unfinished(str(self.path))  # of workers that were killed
            return
        with leased(self.path, name) as _leases[str(self)]:
            try:
                yield
            finally:
                del _leases[str(self)]

    @contextlib.contextmanager
    def mirrored(
        self, folders: Collection[str], files: Collection[str] = (), *, pulled: Collection[str] = ()
    ) -> Iterator[None]:
        """Deliver parts of the working folder to the object store inside the context; first fetch what is there.

        The working folder is deleted at the end, unless something could not be delivered.

        Args:
            folders, files: names in the directory.
            pulled: names of journals that another process writes, see `FolderMirror`.
        """
        assert isinstance(self.path, RemotePath)
        self.make_folder(self.working)
        only = (*folders, *files)
        mirror = FolderMirror(
            self.working, self.path, pulled=pulled, only=only, gradual=READER_FOLDERS, fenced=self.is_lost
        )
        for name in folders:
            mirror.restore(name)
        for name in files:
            mirror.fetch(name)
        with mirror:
            yield
        if mirror.delivered:
            shutil.rmtree(self.working, ignore_errors=True)

    def is_lost(self) -> bool:
        """Return whether another driver owns the directory that this process owned."""
        lease = _leases.get(str(self))
        return lease is not None and lease.lost

    def is_owned(self) -> bool:
        """Return whether a driver owns the directory; True where that cannot be known."""
        if isinstance(self.path, RemotePath):
            owner = read_owner(self.path / LEASE)
            return owner is not None and owner.is_valid()
        return is_owned(self.path)

    @contextlib.contextmanager
    def new_model(self) -> Iterator[Path]:
        """Yield the folder to write the model to; without an error it is then in the directory."""
        if isinstance(self.path, Path):
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="rayface-model-") as folder:
            yield Path(folder)
            for file in sorted(Path(folder).iterdir()):
                write_file(self.path / file.name, file.read_bytes())

    def _fetched(self, name: str) -> Path:
        """Return the path of a file on this machine; from an object store it is fetched, if it exists."""
        if isinstance(self.path, RemotePath):
            with contextlib.suppress(FileNotFoundError):
                content = (self.path / name).read_bytes()
                self.make_folder(self.working)
                write_file(self.working / name, content)
        return self.working / name


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """Raise OSError where an object store refuses or does not answer, as a disk does."""
    try:
        yield
    except (DataError, StorageError) as error:
        raise OSError(errno.EIO, str(error)) from error
