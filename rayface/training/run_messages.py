"""Messages between the driver, the controller and the workers of a run, as small files in its directory."""

import contextlib
import os
from pathlib import Path

from rayface.files import remove_folder, write_file
from rayface.storage import DataError, RemotePath, StorageError
from rayface.training.run_store import RunStore, Values, as_os_error

__all__ = ["RunMessages", "Values"]

_RESTARTS = "restarts.json"
_ROLLBACKS = "rollbacks.json"
_STOP = "stop"
_DRAIN = "leave"
_HANG = "hang"
_BEATS = "beats"
_BEAT_BYTES = 64  # at least those of a heartbeat


class RunMessages(RunStore):
    """Messages of a run."""

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and end.

        Raises:
            FileNotFoundError: the directory does not exist.
        """
        self._mark(_STOP)

    def stop_requested(self) -> bool:
        """Return whether a stop is requested; one rank calls it and broadcasts the answer."""
        return self._is_asked(_STOP)

    def clear_stop_request(self) -> None:
        """Clear the stop request."""
        self._delete(_STOP)

    def request_drain(self) -> None:
        """Ask the workers to save a checkpoint and end, so that the driver restarts them: a node is preempted."""
        self._mark(_DRAIN)

    def drain_requested(self) -> bool:
        """Return whether a drain is requested."""
        return self._is_asked(_DRAIN)

    def clear_drain_request(self) -> bool:
        """Return whether a drain was requested, and clear the request."""
        requested = self._exists(_DRAIN)
        self._delete(_DRAIN)
        return requested

    def restarts(self) -> list[str]:
        """Return the reasons of the restarts since the driver started, oldest first."""
        return [str(reason) for reason in self._read_json(_RESTARTS) or ()]

    def add_restart(self, reason: str) -> None:
        """Record the reason of a restart, before the workers restart."""
        self._write_json(_RESTARTS, [*self.restarts(), reason])

    def clear_restarts(self) -> None:
        """Clear the restarts and the drain request of an earlier driver."""
        self._delete(_RESTARTS)
        self.clear_drain_request()

    def read_rollbacks(self) -> Values | None:
        """Return the state of the last roll-back; None if there was none."""
        return self._read_json(_ROLLBACKS)

    def write_rollbacks(self, state: Values) -> None:
        """Write the state of a roll-back; the next checkpoint holds it too."""
        self._write_json(_ROLLBACKS, state)

    def delete_rollbacks(self) -> None:
        """Delete the state of the last roll-back, so that only checkpoints count."""
        self._delete(_ROLLBACKS)

    def record_hang(self, report: str) -> None:
        """Store the report of a hang, unless another worker was first."""
        with contextlib.suppress(OSError, DataError, StorageError):
            if isinstance(self.path, RemotePath):
                if not self._exists(_HANG):
                    write_file(self.path / _HANG, report.encode())
                return
            with (self.path / _HANG).open("x") as file:
                file.write(report)

    def take_hang(self) -> str | None:
        """Return the report of a hang, and delete it."""
        try:
            report = (self.path / _HANG).read_text()
            (self.path / _HANG).unlink()
        except OSError:
            return None
        return report or None

    def clear_heartbeats(self) -> None:
        """Delete the heartbeats of an earlier driver's workers, whose times are those of other clocks."""
        remove_folder(self.path / _BEATS)

    def open_heartbeat(self, rank: int) -> int:
        """Open the heartbeat file of a worker; return the file descriptor."""
        path = self.working / _BEATS / _beat(rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def share_heartbeat(self, rank: int, file: int) -> None:
        """Show the heartbeat of a worker to readers on other machines.

        Raises:
            OSError: it cannot be written.
        """
        if isinstance(self.path, Path):
            os.fsync(file)
            return
        with as_os_error():
            write_file(self.path / _BEATS / _beat(rank), os.pread(file, _BEAT_BYTES, 0))

    def read_heartbeat(self, rank: int) -> bytes:
        """Return the last heartbeat of a worker.

        Raises:
            OSError: nothing can be read.
        """
        with as_os_error():
            return (self.path / _BEATS / _beat(rank)).read_bytes()


def _beat(rank: int) -> str:
    return f"rank_{rank:05d}"
