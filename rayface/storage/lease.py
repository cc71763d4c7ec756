"""Ownership of a folder in an object store by a lease: an object that its owner renews.

pyarrow.fs has no conditional write (If-None-Match), so a lease is taken by writing it, waiting `SETTLE_SECONDS` and
reading it back: the last writer owns it. Whoever took longer than half of that from its look to its write gives way and
looks again, so two processes that saw the folder free at the same time cannot both own it.

Clocks of machines differ, so an owner elsewhere has ended when its lease did not change for `LEASE_SECONDS` on the
monotonic clock of the process that looks, whatever end it names.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from rayface.storage.errors import DataError, StorageError
from rayface.storage.remote_path import RemotePath

LEASE = ".lease.json"
LEASE_SECONDS = 60.0  # after the last renewal
SETTLE_SECONDS = 1.0  # an object store shows a write to all readers within this time
_RENEWALS = 4  # in LEASE_SECONDS
_TRIES = 10
_LOOK_SECONDS = 3.0  # between looks at the lease of another
_MAX_SKEW_SECONDS = 3600.0  # stores refuse requests of machines whose clocks are off by more (S3: by 15 minutes)
_held: set[str] = set()  # ids of the leases of this process
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Content of a lease.

    Attributes:
        id: unique to one process and one lease.
        host, pid: the process.
        space: boot and process-id space of the host, "" if unknown: within it, a pid tells whether the process lives.
        ends: Unix seconds.
    """

    id: str
    host: str
    pid: int
    space: str
    ends: float

    def is_valid(self) -> bool:
        """Return whether the lease has not ended, as far as its end and its process tell; see `Lease.acquire`."""
        return time.time() < self.ends and not self._process_ended()

    def has_ended(self) -> bool:
        """Return whether the lease has ended for certain, even if the clocks of the two machines differ."""
        return time.time() > self.ends + _MAX_SKEW_SECONDS or self._process_ended()

    def is_here(self) -> bool:
        """Return whether the process can be seen from this one."""
        return bool(self.space) and self.space == _space()

    def _process_ended(self) -> bool:
        return self.is_here() and not self._process_lives()

    def _process_lives(self) -> bool:
        if self.pid == os.getpid():
            return self.id in _held  # else of an earlier process: in a restarted container the ids are the same
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """A lease that this process holds; a thread renews it.

    Args:
        path: object of the lease.
        name: name of the folder in messages.
    """

    def __init__(self, path: RemotePath, name: str) -> None:
        self._path, self._name = path, name
        self._id = uuid.uuid4().hex
        self._released = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew_until_released, daemon=True, name="lease")

    @property
    def lost(self) -> bool:
        """Whether another process took the lease, because this one could not renew it in time."""
        return self._lost

    def acquire(self) -> None:
        """Take the lease, after a wait of LEASE_SECONDS where its last owner may be dead: it is, if it renews nothing.

        Raises:
            DataError: another process holds it; one line that names it, and when its lease ends.
        """
        for _ in range(_TRIES):
            before = self._wait_for_end()
            looked = time.monotonic()
            if (owner := read_owner(self._path)) not in (None, before):
                raise self._refusal(owner)
            self._write()
            if time.monotonic() - looked > SETTLE_SECONDS / 2:
                self._delete_own()
                continue
            time.sleep(SETTLE_SECONDS)
            owner = read_owner(self._path)
            if owner is None:  # a slow rival deleted it
                continue
            if owner.id != self._id:
                raise self._refusal(owner)
            _held.add(self._id)
            self._thread.start()
            return
        raise StorageError(f"{self._name}: its lease cannot be taken: the store is too slow: run again when it answers")

    def release(self) -> None:
        """Stop renewing, and delete the lease if it is still held."""
        self._released.set()
        self._thread.join()
        _held.discard(self._id)
        with contextlib.suppress(DataError, StorageError):  # it then ends by itself
            self._delete_own()

    def renew(self) -> None:
        """Write a later end, unless another process holds the lease by now."""
        owner = read_owner(self._path)
        if owner is not None and owner.id != self._id:  # also one that ended: it has trained since
            self._lost = True
            logger.error("%s: %s took it over, because its lease was not renewed in time", self._name, owner)
        else:
            self._write()

    def _renew_until_released(self) -> None:
        while not self._lost and not self._released.wait(LEASE_SECONDS / _RENEWALS):
            try:
                self.renew()
            except (DataError, StorageError) as error:
                logger.warning("%s: its lease cannot be renewed: %s", self._name, error)

    def _wait_for_end(self) -> Owner | None:
        """Return the last owner, whose lease has ended, or None."""
        first = read_owner(self._path)
        if first is None or first.has_ended():
            return first
        if first.is_here() and first.is_valid():
            raise self._refusal(first)
        logger.info("%s: waiting up to %g s for the end of the lease of %s", self._name, LEASE_SECONDS, first)
        end = time.monotonic() + LEASE_SECONDS
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(_LOOK_SECONDS, left))
            owner = read_owner(self._path)
            if owner is None:
                return None
            if owner != first:
                raise self._refusal(owner)
        return first

    def _refusal(self, owner: Owner) -> DataError:
        ends = datetime.fromtimestamp(owner.ends, UTC).strftime("%H:%M:%S UTC")
        return DataError(
            f"{self._name}: {owner} owns it, and its lease ends at {ends} unless renewed: wait for it, or stop it first"
        )

    def _write(self) -> None:
        ends = time.time() + LEASE_SECONDS
        owner = Owner(id=self._id, host=socket.gethostname(), pid=os.getpid(), space=_space(), ends=ends)
        self._path.upload(json.dumps(asdict(owner)).encode())

    def _delete_own(self) -> None:
        owner = read_owner(self._path)
        if owner is not None and owner.id == self._id:
            self._path.unlink(missing_ok=True)


def read_owner(path: RemotePath) -> Owner | None:
    """Return the content of a lease; None if there is none, or it cannot be parsed."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        return None


@contextmanager
def leased(folder: RemotePath, name: str, *, lease: str = LEASE) -> Iterator[Lease]:
    """Own a folder in an object store inside the context; if the process is killed, ownership ends with its lease.

    Args:
        name: name of the folder in messages, for example "train.output: s3://bucket/run".
        lease: name of the lease's object in it.

    Raises:
        DataError: another process owns it, or it cannot be written; one line.
        StorageError: the store does not answer.
    """
    held = Lease(folder / lease, name)
    held.acquire()
    try:
        yield held
    finally:
        held.release()


def _space() -> str:
    """Return what tells the process ids of this host and boot from those of others; "" where that is unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()} {file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
